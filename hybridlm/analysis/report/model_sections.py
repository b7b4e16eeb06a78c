"""The sections of the report of a model folder."""

import html
import pathlib

from hybridlm.analysis.report.parts import Parts, cards, count_text, section
from hybridlm.analysis.report.run_sections import evaluations, model_section, probes
from hybridlm.analysis.run import Results
from hybridlm.models.accounting import active_parameters
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.runs import lineage, opened
from hybridlm.runs.json_files import read_settings
from hybridlm.runs.stored import open_checkpoint

_LENGTH = 4096  # tokens, of a folder that does not state the length of training


def model_sections(folder: pathlib.Path) -> tuple[Parts, str]:
    """The report of a model folder: the parts' data, and HTML."""
    parts = Parts()
    settings = read_settings(folder / opened.MODEL)
    config = opened.read_section(ModelConfig, settings, "model", folder / opened.MODEL)
    model = Model.of(config)
    results, code = Results(folder), f"Results({str(folder)!r})"
    found = [(count_text(model.count()), "parameters")]
    active = active_parameters(model)
    if active < model.count():
        found.append((count_text(active), "of them for each token"))
    found.append((str(config.depth), "layers"))
    begun = lineage.described(opened.lineage_of(folder))
    arrays = open_checkpoint(folder).rows()
    shown = [{**r, "shape": " × ".join(map(str, r["shape"]))} for r in arrays]
    sections = [
        cards(found),
        f"<p class=note>From {html.escape(begun)}.</p>" if begun else "",
        model_section(
            parts,
            config,
            settings.get("length") or _LENGTH,
            f"open_checkpoint({str(folder)!r}).model.config",
        ),
        evaluations(parts, results, code),
        probes(parts, results.probe_rows(), code),
        section("Parameters", parts.table("Every array", shown)),
    ]
    return parts, "\n".join(filter(None, sections))
