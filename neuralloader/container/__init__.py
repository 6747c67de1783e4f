"""The .nvpack file: its layout, its index of videos and clips, one writer and one reader. No model, no training."""
