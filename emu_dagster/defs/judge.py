"""Who votes on faithfulness: a model that filtering never uses, and that learnt nothing that the gates turned away."""

import dagster as dg

from emu_dagster.declarations.declared import declared
from emu_dagster.resources.recorder import Record


@declared(
    group="evaluation",
    kinds={"open_clip", "pytorch"},
    reads=["filtered_corpus", "raw_corpus"],
    outs=["data/models/faithfulness_judge"],
    params=["faithfulness_judge"],
    how=["launch"],
    files=["faithfulness_judge.weights"],
    pool="gpu",
)
def faithfulness_judge(record: Record) -> dg.MaterializeResult:
    """An open_clip model trained on rows that passed the gates, part of which it never sees: on pairs of these, where
    the right answer is known, its error is measured. A judge that errs too often decides nothing in the registry.
    """
    from emu_dagster.training.train import train
    from emu_models.evaluation.judge import load_faithfulness_judge
    from emu_steps.judging import judge_sheet, told_error
    from emu_steps.training_jobs import judge_job

    layout = record.layout
    (told,) = train(record, [judge_job(layout, record.params.faithfulness_judge)])
    _, error = load_faithfulness_judge(layout.model(record.key), layout.root)
    return record.result(
        {name: value for name, value in told.items() if not isinstance(value, str)},
        pictures={"known_pairs": judge_sheet(layout)},
        tables={"error": told_error(error)},
    )
