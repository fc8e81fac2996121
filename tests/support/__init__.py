"""What several test packages share: a tiny model, rollouts without a cache, reusable actors."""
