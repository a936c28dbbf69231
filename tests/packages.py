"""Packages of others, which add to ours by entry points."""

from pathlib import Path


def write_package(site: Path, name: str, code: str, group: str, entry_point: str) -> None:
    """Writes a module into a new folder of packages, with what pip notes down of it.

    Args:
        group: whose entry points it adds to, such as `methods`.
    """
    facts = site / f"{name}-1.0.dist-info"
    facts.mkdir(parents=True)
    (site / f"{name}.py").write_text(code)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[disp_llm.{group}]\n{entry_point}\n")
