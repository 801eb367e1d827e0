"""Cut scikit-learn's digits into one file a device, as a stand-in for data that devices have already.

usage: python make_data.py DEVICES

Writes ``data-01.npz``, ``data-02.npz``, … (arrays x and y) and ``held-out.npz`` into the present folder. Your own files
need the same two arrays: x of shape (samples, features...), float32, scaled as the model wants it; y with the labels.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits


def main(devices: int) -> None:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    held_out = len(x) // 5
    np.savez("held-out.npz", x=x[:held_out], y=y[:held_out])
    for device in range(devices):
        mine = slice(held_out + device, None, devices)
        np.savez(f"data-{device + 1:02d}.npz", x=x[mine], y=y[mine])


if __name__ == "__main__":
    main(int(sys.argv[1]))
