# SPDX-License-Identifier: AGPL-3.0-or-later
"""The paper that a loss comes from, declared in the file of the loss."""

from __future__ import annotations

from dataclasses import dataclass

ARXIV = "https://arxiv.org/abs/"


@dataclass(frozen=True)
class Paper:
    """A citation in the fields of BibTeX; those that are empty are left out of it.

    Attributes:
        address: Where it can be read.
        authors: As BibTeX has them: ``Family, Given and Family, Given``.
        venue: Short name of the conference or journal, whose full name is `booktitle` or `journal`.
        year: Year of publication, 0 if unknown.
        pages: First and last, joined by ``--``.
    """

    address: str
    authors: str = ""
    title: str = ""
    venue: str = ""
    year: int = 0
    journal: str = ""
    booktitle: str = ""
    volume: str = ""
    number: str = ""
    pages: str = ""
    doi: str = ""

    @property
    def families(self) -> tuple[str, ...]:
        """Family names of the authors."""
        return tuple(author.partition(",")[0] for author in self.authors.split(" and ") if author)

    @property
    def citation(self) -> str:
        """One line: family names, title, venue, year, address; the address alone without a title."""
        if not self.title:
            return self.address
        names = ", ".join(self.families[:3]) + (" et al." if len(self.families) > 3 else "")
        return f"{names}: {self.title}. {self.venue} {self.year}. {self.address}"

    @property
    def bibtex(self) -> str:
        """The BibTeX entry, empty where the title is unknown."""
        if not self.title:
            return ""
        kind = "article" if self.journal else "inproceedings" if self.booktitle else "misc"
        first_word = self.title.split(" ")[0].split("-")[0]
        key = f"{self.families[0]}{self.year}{first_word.rstrip(':')}".lower()
        fields = {"author": self.authors, "title": f"{{{self.title}}}"}
        fields.update({name: getattr(self, name) for name in ("journal", "booktitle", "volume", "number", "pages")})
        fields.update(year=str(self.year), doi=self.doi)
        if self.address.startswith(ARXIV):
            fields.update(eprint=self.address.removeprefix(ARXIV), archivePrefix="arXiv")
        fields["url"] = self.address
        lines = (f"  {name} = {{{value}}}," for name, value in fields.items() if value)
        return "\n".join([f"@{kind}{{{key},", *lines, "}"])
