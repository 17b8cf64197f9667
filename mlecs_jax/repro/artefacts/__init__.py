"""What each artefact runs and shows, one file each."""
