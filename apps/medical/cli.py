"""The commands `glocal medical TASK VERB`; a task's commands are read when it is called."""

from __future__ import annotations

from cyclopts import App

app = App(name="medical", help="Medical imaging. Research use, not a medical device.")
app.command(
    "apps.medical.segmentation.cli:app",
    name="segment",
    help="Segmentation of scans and pictures: inspect, check, train, import, evaluate, compare, predict, export, demo.",
)
app.command(
    "apps.medical.ultrasound.cli:app",
    name="ultrasound",
    help="Classes of ultrasound stills and cine loops: the same verbs, and serve.",
)
pathology = App(name="pathology", help="Histopathology: classes and captions. Research use, not a medical device.")
pathology.command(
    "apps.medical.pathology_classify.cli:app",
    name="classify",
    help="Classes of tiles and whole slides: the same verbs, and serve.",
)
pathology.command(
    "apps.medical.pathology_caption.cli:app",
    name="caption",
    help="Captions and classes of slides from their patches: the same verbs, and serve.",
)
app.command(pathology)
