"""Jobs: continuous statements as the store keeps them: submitted, upgraded, operated, what depends on them."""
