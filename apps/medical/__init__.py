"""Medical images: scans, slides and ultrasound, from the file of the clinic to a result on its own grid.

For research; not a medical device.
"""
