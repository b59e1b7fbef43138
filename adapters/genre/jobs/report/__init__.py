"""Pages of figures: one HTML file each, without scripts or outside files, light and dark."""
