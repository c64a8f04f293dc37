"""Is an exported reranker what it was? Its files, its parts, and what it decides."""

from pathlib import Path

from deas_vla.errors import UserError
from deas_vla.export.golden import GOLDEN, Golden, Tolerance
from deas_vla.export.lerobot_files import check_lerobot_files
from deas_vla.export.manifest import MANIFEST
from deas_vla.export.reranker import Reranker, require_fit
from deas_vla.export.sums import check_sums


def verify(folder: str | Path) -> str:
    """Checks a reranker from the outside in, on the CPU.

    First that every file is there and unchanged (SHA256SUMS), then that the parts are those of the manifest, then
    that the golden inputs still give the same scores and the same choices.

    Returns:
        What was checked, in one line.

    Raises:
        UserError: naming what differs.
    """
    folder = Path(folder)
    files = check_sums(folder)
    reranker = Reranker.load(folder)
    contract = reranker.contract
    check_lerobot_files(reranker.manifest, folder)
    golden = Golden.load(folder / GOLDEN)
    if golden.contract != contract.fingerprint:
        raise UserError(
            f"{folder / GOLDEN} was recorded under another contract "
            f"({golden.contract[:12]} against {contract.fingerprint[:12]}); export the reranker again"
        )
    count = reranker.manifest["golden"].get("inputs")
    if len(golden.observation) != count:
        raise UserError(f"{folder / GOLDEN} has {len(golden.observation)} inputs, {MANIFEST} says {count}")
    require_fit(golden.observation, contract)
    replay = Golden.record(reranker.decider, golden.observation, golden.keys)
    support = reranker.decider.scorer.score_range
    tolerance = Tolerance.of(reranker.policy)
    lines = golden.differences(replay, contract, support, tolerance)
    lines += golden.other_choices(replay, support, tolerance)
    if lines:
        raise UserError(f"{folder} does not decide as it did when it was exported: {'; '.join(lines)}")
    return (
        f"{folder}: {files} files unchanged, parts as in {MANIFEST}, {count} golden inputs decided as before"
    )
