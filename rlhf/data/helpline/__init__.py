"""A tiny domain that the project generates itself: a helpline about a simplified picture of diabetes.

Every text is synthetic, made from a small grammar so that a reader can judge an answer at a glance. Nothing
here is medical advice.
"""
