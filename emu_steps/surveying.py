"""The report on the corpus before anything is dropped."""

from collections.abc import Mapping
from itertools import chain

from emu_data.guarded import fit_guarded
from emu_data.ledger import count_gates, open_ledger
from emu_data.shards import iter_samples
from emu_data.survey import compare_families, draw_to_label, measure_effects, measure_precision, read_labels
from emu_reports.corpus import THUMBNAIL, CorpusFindings, write_corpus_report
from emu_reports.page import Run
from emu_steps.layout import Layout
from emu_steps.params import Params


def survey_corpus(layout: Layout, params: Params, made_from: Mapping[str, str]) -> dict[str, float]:
    """Write data/reports/corpus_report and return its counts. made_from: asset -> md5 of the inputs.

    Raises ValueError if the file of labels is missing or cannot be read.
    """
    section, ledger = params.corpus_report, params.filter_ledger
    labels = {}
    if section.labels:
        path = layout.root / section.labels
        if not path.is_file():
            raise ValueError(f"corpus_report.labels: there is no file {path}; copy the report's to_label.csv there")
        labels = read_labels(path)
    with open_ledger(layout.ledger) as con:
        policy = ledger.policy.model_dump()
        effects = measure_effects(con, policy, ledger.control_share, section.num_examples)
        to_label = draw_to_label(con, section.num_to_label)
        families, precision = compare_families(con), measure_precision(con, labels)
        num_rows = sum(count_gates(con).values())
    keys = {*to_label["key"], *chain.from_iterable((*one.dropped, *one.kept) for one in effects)}
    samples = iter_samples(layout.raw, sorted(keys)) if keys else ()
    decoded = list(fit_guarded(samples, THUMBNAIL))
    images = {sample.key: image for sample, image in decoded}
    captions = {sample.key: sample.caption for sample, _ in decoded}
    findings = CorpusFindings(num_rows, effects, families, precision, to_label, images, captions)
    write_corpus_report(layout.report("corpus_report"), findings, Run(params.profile, params.toy, made_from))
    return {
        "num_rows": num_rows,
        "num_thresholds": sum(one.threshold is not None for one in effects),
        "num_labels": sum(one.num_labels for one in precision),
        "num_uneven": sum(one.is_uneven for one in families),
    }
