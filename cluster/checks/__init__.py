"""What ``rlhf doctor`` looks at: every check is a function that returns records and changes nothing."""
