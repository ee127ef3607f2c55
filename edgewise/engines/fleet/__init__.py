"""Real devices: a coordinator, and agents that connect to it over mutual TLS."""
