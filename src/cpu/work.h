// SPDX-License-Identifier: MIT
// What a plan computes, copies and moves, and with the rates of a machine the time of a call.
#ifndef VECINA_CPU_WORK_H_
#define VECINA_CPU_WORK_H_

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/peak.h"

namespace vecina::internal::cpu {

// Of one call, all threads together. Every lane of a vector counts, whether it holds anything or
// not; keys and values count once for each box that packs them.
struct Work {
  double multiply_adds = 0;
  double exponentials = 0;
  double packed = 0;    // elements of keys and values, and of their gradients
  double queries = 0;   // elements of queries and outputs, and of their gradients
  double gathered = 0;  // elements of sums that units keep apart
  double tensor_bytes = 0;
};

Work work_of(const ForwardPlan& plan);
Work work_of(const BackwardPlan& plan);

// Milliseconds of a call on one thread, one of many back to back. The parts of the work take turns,
// each at a rate of the machine times a fitted factor. Half of all problems are met within a tenth,
// some are missed by more than half (docs/performance.md). A bias and what a call takes however
// small it is are not counted.
double predict_ms(const ForwardPlan& plan, const ForwardKernel& kernel, const Peak& peak);
double predict_ms(const BackwardPlan& plan, const BackwardKernel& kernel, const Peak& peak);

}  // namespace vecina::internal::cpu
#endif  // VECINA_CPU_WORK_H_
