"""Files of weights: read safely, key names of every library, public addresses, the cache. Knows no model."""
