// SPDX-License-Identifier: MIT
// A vecina_problem from the arguments of a Python call.
#ifndef VECINA_PYTHON_PROBLEM_H_
#define VECINA_PYTHON_PROBLEM_H_

#include <nanobind/nanobind.h>

#include "vecina/vecina.h"

namespace vecina::python {

namespace nb = nanobind;

// What a call says besides its tensors, as Python objects. For each axis: one value or a sequence.
struct Parameters {
  int rank;  // 1, 2, 3: neighborhood attention; 0: attention
  nb::handle kernel_size, stride, dilation, is_causal;
  nb::handle scale;  // None: head_dim^-0.5
  nb::handle output_stride;
  // None: lengths are padded, if given; else packed, and these are the largest extents.
  nb::handle extents, query_extent;
};

struct Inputs {
  vecina_tensor query, key, value, additional_key, additional_value, bias, lengths, query_lengths;
};

// Throws ValueError where the arguments do not add up to a problem; the library checks the rest.
// Lengths of one dimension become [samples, 1].
vecina_problem make_problem(const Parameters& parameters, Inputs* inputs);

}  // namespace vecina::python
#endif  // VECINA_PYTHON_PROBLEM_H_
