"""Reading XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from modelfs.uploadscript.troubles import Trouble


def parsed(body: bytes) -> ET.Element:
    try:
        return ET.fromstring(body)
    except ET.ParseError:
        raise Trouble("the registry says something that is no XML") from None


def local_name(item: ET.Element) -> str:
    return item.tag.rpartition("}")[2]


def text_of(item: ET.Element, name: str) -> str:
    """Return the text of the child of that name, '' where there is none."""
    return next((child.text or "" for child in item if local_name(child) == name), "")
