"""The only place that translates between the contract's messages and the engine's types."""
