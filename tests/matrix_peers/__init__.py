"""The paths of the outside implementations of matrix methods, run in float64: `tests/golden/matrices.json`.

    python3.11 -m venv peers && peers/bin/pip install torch==2.13.0 jax==0.10.2 optax==0.2.8 chex flax
    peers/bin/pip install --no-deps pytorch_optimizer==4.1.0 came-pytorch==0.1.3 galore-torch==1.0 \
        apollo-torch==1.0.3 psgd-jax==0.2.9
    peers/bin/python -m tests.matrix_peers FOLDER [FAMILY ...]

FOLDER has a checkout of each repository of `CHECKOUTS`, under the repository's own name, at the commit given there. A
family is a module: `orthogonal`, `kronecker`, `kron`, `low_rank`; others' paths stay as they are. CI has none of this:
tests read the file.

The gradients are those of `tests/records/matrix_problem.py` at the path's own params. A path holds, by leaf, the params
after the steps `SHOWN`, flattened in our order of axes: kernels are (in, out). `casts` is what was taken out of the
source to have float64. `given` is what a run was fed with: probes, projections, logits. `sensitivity` is the factor by
which a small move of every gradient grew along the path: two right answers agree to about 1e-16 times that.
"""

CHECKOUTS = {
    "SOAP": ("nikhilvyas/SOAP", "a1e553530fde97d0e6b307d7c82ac6d38b072340"),
    "NorMuon": ("zichongli5/NorMuon", "d45c9a4280d758e2cf0b2b8333765d040e953937"),
    "scion": ("LIONS-EPFL/scion", "f58a393e010395a5913176be5673d8839caa6285"),
    "dion": ("microsoft/dion", "0a059a4542e5aa74b40dcd1dce363836c7afcd48"),
    "optimizers": ("facebookresearch/optimizers", "f60660661194de26d3ee78bae6d15820ff8e583d"),
    "Muon": ("KellerJordan/Muon", "857d1adc159e098212f828d927460782d3da59e9"),
    "KL-Methods": ("yorkerlin/KL-Methods", "a02e6221556301cf84f9607c73f327910afb2b95"),
    "Emerging-Optimizers": ("NVIDIA-NeMo/Emerging-Optimizers", "fd7729267109a8848709e9406bf19e53e970c3f4"),
}

PACKAGES = (
    "torch",
    "numpy",
    "jax",
    "optax",
    "pytorch_optimizer",
    "came-pytorch",
    "galore-torch",
    "apollo-torch",
    "psgd-jax",
)
FAMILIES = ("orthogonal", "kronecker", "kron", "low_rank")
