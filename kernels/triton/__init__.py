"""The Triton kernels, one a module; importing a module needs triton.

`import triton` is Triton itself here as everywhere: imports are absolute, and neither this package
nor the folder that holds it is ever on the path.
"""
