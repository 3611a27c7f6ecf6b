"""Other programs' attention beside `kvist bench attention --python`: a line of JSON in, a line out.

A case is `batch` sequences of `rows` query rows each on `shared` common tokens and `own` ones of their own; `layers`
copies of keys and values follow each other, as in a model. A peer is a class with a name, the package that it needs,
and forms, of which the fastest is taken; `prepare` makes a function that runs all layers once, or None where a form
does not do.
"""

import array
import ctypes
import importlib.util
import json
import os
import random
import sys
import time
import types


def package_folder(name):
    found = importlib.util.find_spec(name)
    return found and found.submodule_search_locations[0]
