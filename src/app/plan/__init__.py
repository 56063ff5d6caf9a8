"""Before a run: what it will need of card and disk, how long it will take, and whether this machine is ready."""
