"""What in a DICOM header names a person, a place or a day, and names for items that hold none of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from apps.medical._scan import quiet

SHORTEST = 3  # a shorter string is found in every text
# Elements beside all names of persons (PN), dates (DA, DT) and UIDs (UI), which are told by their type.
_NAMED = frozenset((
    "AccessionNumber", "AdmissionID", "BranchOfService",
    "CountryOfResidence", "CurrentPatientLocation", "DeviceSerialNumber",
    "DetectorID", "EthnicGroup", "FillerOrderNumberImagingServiceRequest",
    "InstitutionAddress", "InstitutionName", "InstitutionalDepartmentName",
    "IssuerOfPatientID", "MedicalRecordLocator", "MilitaryRank",
    "Occupation", "OtherPatientIDs", "PatientAddress",
    "PatientID", "PatientInstitutionResidence", "PatientReligiousPreference",
    "PatientTelephoneNumbers", "PerformedProcedureStepID", "PlacerOrderNumberImagingServiceRequest",
    "RegionOfResidence", "RequestedProcedureID", "RequestingService",
    "ScheduledProcedureStepID", "ServiceEpisodeID", "StationName",
    "StudyID",
))  # fmt: skip
_PUBLIC_UIDS = ("1.2.840.10008.",)  # the standard's own: classes and transfer syntaxes


@quiet()
def identifiers(dataset: Any) -> list[str]:
    """Strings of a pydicom data set that must not leave: names and their parts, ids, dates, institutions, UIDs.

    Dates come as stored (19700131) and as 1970-01-31, 31.01.1970. Nested sequences are searched; strings of under
    three characters are left out. Sorted, without repetitions.
    """
    found: set[str] = set()
    for kind, keyword, text in _texts(dataset):
        if kind == "PN":
            parts = [p for p in re.split(r"[\^=\s,]+", text) if p]
            found |= {text, " ".join(parts), " ".join(reversed(parts)), *parts}
        elif kind in ("DA", "DT"):
            found.add(text)
            if day := re.match(r"(\d{4})[.\-/]?(\d\d)[.\-/]?(\d\d)", text):
                found |= {"".join(day.groups()), "-".join(day.groups()), ".".join(reversed(day.groups()))}
        elif kind == "UI":
            if not text.startswith(_PUBLIC_UIDS):
                found.add(text)
        elif keyword in _NAMED:
            found.add(text)
    return sorted(s for s in found if len(s) >= SHORTEST and any(map(str.isalnum, s)))


def _texts(dataset: Any) -> Iterator[tuple[str, str, str]]:
    """Type, keyword and text of every value, nested ones and the file's own header included."""
    for part in (dataset, getattr(dataset, "file_meta", None)):
        if part is None:
            continue
        for tag in list(part.keys()):
            try:
                element = part[tag]
            except Exception:  # a value that cannot be read; pydicom raises many kinds
                continue
            if element.VR == "SQ":
                for item in element.value:
                    yield from _texts(item)
            elif element.VR in ("PN", "DA", "DT", "UI") or element.keyword in _NAMED:
                values = element.value if isinstance(element.value, list | tuple) else [element.value]
                many = element.value if element.VM > 1 else values
                for value in many:
                    if value is not None and str(value).strip():
                        yield element.VR, element.keyword, str(value).strip()


@quiet()
def safe_id(dataset: Any, stem: str) -> str:
    """`stem` where it holds nothing of `identifiers`, else "scan-" and ten digits of a hash that nobody can undo.

    The hash is of the series' or image's UID, so the same file is always named the same.
    """
    low = stem.casefold()
    runs = _runs(re.sub(r"[^0-9a-z]+", " ", low))
    for text in identifiers(dataset):
        wanted = text.casefold()
        words = re.sub(r"[^0-9a-z]+", " ", wanted).strip()
        if wanted in low or words in runs:
            uid = str(dataset.get("SOPInstanceUID", "")) or str(dataset.get("SeriesInstanceUID", ""))
            return "scan-" + hashlib.sha256(f"{uid}/{stem}".encode()).hexdigest()[:10]
    return stem


def _runs(plain: str) -> set[str]:
    """Every run of neighbouring words of a name: "doe jane ct" -> doe, doe jane, doe jane ct, jane, ..."""
    words = plain.split()[:24]
    return {" ".join(words[a:b]) for a in range(len(words)) for b in range(a + 1, len(words) + 1)}


@quiet()
def group(dataset: Any) -> str:
    """Twelve digits of a hash of the patient's ID: equal for scans of one patient; "" where there is no ID."""
    number = str(dataset.get("PatientID", "") or "").strip()
    return hashlib.sha256(f"patient {number}".encode()).hexdigest()[:12] if number else ""
