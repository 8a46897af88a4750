"""The judge of faithfulness: a model that filtering never uses, and that was not trained on any rejected picture."""

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
    """An open_clip model, trained on the rows that passed the gates, except held-out ones. Its error is measured on
    pairs of held-out rows, for which the right answer is known. The registry does not accept the verdict of a judge
    whose error is too high.
    """
    from emu_dagster.training.train import train
    from emu_models.evaluation.judge import load_faithfulness_judge
    from emu_steps.judging import describe_judge_error, judge_sheet
    from emu_steps.training_jobs import judge_job

    layout = record.layout
    (result,) = train(record, [judge_job(layout, record.params.faithfulness_judge, record.params.launch)])
    _, error = load_faithfulness_judge(layout.model(record.key), layout.root)
    return record.result(
        {name: value for name, value in result.items() if not isinstance(value, str)},
        pictures={"known_pairs": judge_sheet(layout)},
        tables={"error": describe_judge_error(error)},
    )
