"""One model over several processes: each forward pass in lock-step, all else in the first."""
