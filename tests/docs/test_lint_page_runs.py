"""What the how-to on sync points shows does run."""

import pytest
from test_pages_run import PREPARED, blocks, run

PAGE = "docs/how-to/hold-the-line-on-sync-points.md"


@pytest.mark.parametrize("index", range(len(blocks(PAGE))))
def test_the_page_s_code_runs(tmp_path, index):
    prepared = PREPARED.replace('"max_new_tokens": 4, ', "")
    done = run(prepared + "import inferscope\n" + blocks(PAGE)[index], tmp_path)
    assert done.returncode == 0, done.stderr
    if index == 0:
        assert "transformers/generation/utils.py" in done.stdout
