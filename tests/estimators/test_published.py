"""scikit-learn's published tests of its own MLP, from the installed package: only the import is
another one."""

from pathlib import Path

import pytest
import sklearn.neural_network

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.slow_on_stand_in,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*batch_size.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # data that some tests let overflow
]


@pytest.fixture
def global_random_seed() -> int:
    return 42


_THEIRS = Path(sklearn.neural_network.__file__).parent / "tests" / "test_mlp.py"
_IMPORT = "from sklearn.neural_network import MLPClassifier, MLPRegressor"
_source = _THEIRS.read_text()
if _source.count(_IMPORT) != 1:
    raise AssertionError(f"{_THEIRS} does not import the estimators in one line any more")
_ours = _IMPORT.replace("sklearn.neural_network", "nnbackend.sklearn")
exec(compile(_source.replace(_IMPORT, _ours), str(_THEIRS), "exec"))

# they train for long
_LONG = ("test_n_iter_no_change_inf", "test_n_iter_no_change", "test_partial_fit_classification")
for _name in _LONG:
    globals()[_name] = pytest.mark.slow_on_numpy(globals()[_name])
