"""How a room marks an option: part of what is computed, or only of how it is executed.

Every room owns its options as a frozen dataclass whose fields become command-line flags and keys of a configuration file.
A field is *identity* by default: it decides what is computed, and a folder may only be resumed by a run that agrees on it.
`execution(default)` marks the others (devices, chunk sizes, logging), which may change between a stop and a resume.
"""

import dataclasses
from typing import Any


def execution(default: Any) -> Any:
    """A dataclass field that changes how a run is executed but not what it computes."""
    return dataclasses.field(default=default, metadata={"execution": True})


def identity_fields(options: Any) -> dict[str, Any]:
    """The fields of an options dataclass that decide what is computed, by name."""
    return {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if not field.metadata.get("execution", False)
    }
