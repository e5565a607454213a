"""A search for good settings on a Dask cluster, here of two processes on this machine.

    python examples/dask_search.py

Each fit is a task of its own, so this takes no communicator: scikit-learn hands tasks to joblib,
and joblib to Dask. With the address of a cluster, Client("tcp://..."), they run there; joblib has
Ray and its own processes as well. Needs: pip install "nnbackend[sklearn]" "dask[distributed]".
"""

import joblib
from dask.distributed import Client, LocalCluster
from sklearn.model_selection import GridSearchCV

import nnbackend as nn
from nnbackend.sklearn import MLPClassifier

if __name__ == "__main__":  # the processes of the cluster read this file too
    x, y = nn.datasets.digits()
    choices = {"hidden_layer_sizes": [(32,), (64,)], "alpha": [1e-4, 1e-2]}
    network = MLPClassifier(early_stopping=True, learning_rate_init=5e-3, random_state=0)
    search = GridSearchCV(network, choices, cv=3)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster), joblib.parallel_config("dask"):
        search.fit(x, y)
    print(f"best {search.best_score_:.3f} with {search.best_params_}")
