"""prepare: from the settings to token ids, once for all ranks of a job.

Rank 0 does the work and puts the result under the checkpoint directory; the other ranks wait for it there.
Restarts find it again, so the rows and their order are frozen with the first preparation of a job.
"""

from kubeformer.contract.job import JobSettings

from kubeformer_runtime.data.prepared import Beat, Prepared


def prepare(settings: JobSettings, beat: Beat, *, rank: int = 0) -> Prepared:
    """PreparedClassification or PreparedLanguageModel, by the task. Raises DataError.

    `beat` is called every few seconds or more often, also while waiting for rank 0.
    """
    raise NotImplementedError
