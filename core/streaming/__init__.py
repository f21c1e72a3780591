"""Whatever is too large for memory: read by the window, predicted tile by tile, joined and written strip by strip."""
