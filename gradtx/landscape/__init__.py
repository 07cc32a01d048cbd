"""The landscape of a cost function: curvature, critical points, slices, and functions to try optimizers on.

- Curvature: `hessian`, `gauss_newton`, `fisher` make linear operators, which multiply vectors. `lanczos` finds their
  extreme eigenvalues, `spectral_density` the density of all eigenvalues, `trace` the sum of them, and `diagonal` the
  diagonal.
- Critical points: `classify` tells the kind of a point, with the evidence; `find_critical_point` finds one.
- Slices: `slice_1d` and `slice_2d` evaluate a loss on a line or a plane: `random_plane`, `curved_plane`,
  `trajectory_plane`, `plane_through`, `plane_along`.
- `functions`: Beale's, Rosenbrock's and others, with their minima and saddles. `trajectory`: the path of an optimizer.
- `problems`: sums of squares with standard starts, to compare methods of smooth minimization on.

Params are any tree of real arrays, and a loss is `loss(params)` or `loss(params, batch)`, as for `gradtx.minimize`.
`gradtx.plot` draws the results.

>>> import jax.numpy as jnp
>>> from gradtx import landscape
>>> landscape.classify(landscape.functions.monkey_saddle, jnp.zeros(2)).kind
'saddle'
"""

from gradtx.landscape import functions as functions
from gradtx.landscape import problems as problems
from gradtx.landscape.critical import Classification as Classification
from gradtx.landscape.critical import Evidence as Evidence
from gradtx.landscape.critical import classify as classify
from gradtx.landscape.krylov import Eigenpairs as Eigenpairs
from gradtx.landscape.krylov import lanczos as lanczos
from gradtx.landscape.operators import Operator as Operator
from gradtx.landscape.operators import fisher as fisher
from gradtx.landscape.operators import gauss_newton as gauss_newton
from gradtx.landscape.operators import hessian as hessian
from gradtx.landscape.operators import operator as operator
from gradtx.landscape.paths import trajectory as trajectory
from gradtx.landscape.planes import Plane as Plane
from gradtx.landscape.planes import curved_plane as curved_plane
from gradtx.landscape.planes import plane_along as plane_along
from gradtx.landscape.planes import plane_through as plane_through
from gradtx.landscape.planes import random_plane as random_plane
from gradtx.landscape.planes import trajectory_plane as trajectory_plane
from gradtx.landscape.products import fisher_product as fisher_product
from gradtx.landscape.products import gauss_newton_product as gauss_newton_product
from gradtx.landscape.products import hessian_product as hessian_product
from gradtx.landscape.search import Found as Found
from gradtx.landscape.search import find_critical_point as find_critical_point
from gradtx.landscape.slices import Slice as Slice
from gradtx.landscape.slices import slice_1d as slice_1d
from gradtx.landscape.slices import slice_2d as slice_2d
from gradtx.landscape.spectra import Estimate as Estimate
from gradtx.landscape.spectra import SpectralDensity as SpectralDensity
from gradtx.landscape.spectra import diagonal as diagonal
from gradtx.landscape.spectra import spectral_density as spectral_density
from gradtx.landscape.spectra import trace as trace
