"""The commands `glocal medical TASK VERB`; a task's commands are read when it is called."""

from __future__ import annotations

from cyclopts import App

app = App(name="medical", help="Medical imaging. Research use, not a medical device.")
app.command(
    "apps.medical.segmentation.cli:app",
    name="segment",
    help="Segmentation of scans and pictures: inspect, check, train, import, evaluate, compare, predict, export, demo.",
)
