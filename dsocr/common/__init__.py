"""What every room needs: the machine, errors for people, logging, JSON files, the names of a run folder's files."""
