"""From a folder of videos to a finished pack."""
