"""Scalings by Kronecker factors: a matrix is multiplied from the left and from the right.

- `scale_by_shampoo`: by inverse roots of the averages of g gᵀ and gᵀ g.
- `scale_by_kron`: by factors that are fitted to the gradients.
- `in_eigenbasis`: another method, in the eigenbasis of these averages (SOAP).
"""
