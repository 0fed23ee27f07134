// SPDX-License-Identifier: MIT
// Tensors in host memory for the tools and tests: any dtype, any strides, guarded by a page.
#ifndef VECINA_CLI_HOST_TENSOR_H_
#define VECINA_CLI_HOST_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "vecina/vecina.h"

namespace vecina::cli {

// How a tensor lies in memory. The last element ends at an inaccessible page, so a read or write
// past it faults. Everything around and between the rows holds a pattern (NaN as any float) that
// gaps_intact() checks.
struct Placement {
  int64_t gap = 0;     // extra elements after each row of the last dimension
  int64_t offset = 0;  // extra elements between the last one and the page: shifts the alignment
  // Addresses alone, for a plan: nothing is ever written, so no memory is used, however large.
  bool is_reserved = false;
};

class HostTensor {
 public:
  HostTensor() = default;  // not given
  HostTensor(std::vector<int64_t> shape, int32_t dtype, Placement placement = {});

  bool given() const { return storage_ != nullptr; }
  vecina_tensor view() const;  // data == nullptr if not given
  int64_t size() const { return size_; }
  int32_t dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }

  // Element by row-major index; conversion rounds to nearest even. Integers for i32 and i64.
  double get(int64_t index) const;
  void set(int64_t index, double value);
  void fill(double value);
  // False if a byte before, between or after the rows was written.
  bool gaps_intact() const;

 private:
  char* element(int64_t index) const;

  std::shared_ptr<char> storage_;  // the mapping; data_ points into it
  char* data_ = nullptr;
  size_t mapping_bytes_ = 0;
  std::vector<int64_t> shape_, strides_;
  int32_t dtype_ = VECINA_F32;
  int64_t size_ = 0;
};

}  // namespace vecina::cli
#endif  // VECINA_CLI_HOST_TENSOR_H_
