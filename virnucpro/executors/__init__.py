"""Where work runs: in this process, in a pool, in a process for each device."""
