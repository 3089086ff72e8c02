"""Many runs at once: forks of one worker, or members of one process on one frozen base."""
