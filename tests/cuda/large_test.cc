// SPDX-License-Identifier: MIT
// Tensors of more than 2^31 elements: some tokens of them against the reference on a piece of the
// problem. Needs 40 GB of the GPU's memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cli/conformance.h"
#include "core/tensor.h"
#include "device_call.h"
#include "results.h"

namespace vecina::internal::cuda {
namespace {

// The numbers of tensor t are those of one list from element t * kShift on, over and over. Its
// length is a prime number, so that an index that lost its high bits finds other numbers.
constexpr int64_t kPeriod = 4999999, kShift = 611953;

struct Numbers {
  explicit Numbers(int32_t dtype) : list({kPeriod}, dtype) {
    cli::Random random(1);
    for (int64_t i = 0; i < kPeriod; ++i) list.set(i, 4.0 * random.uniform() - 2.0);
  }
  double at(int tensor, int64_t index) const {
    return list.get((index + tensor * kShift) % kPeriod);
  }
  // The whole list again and again, from the tensor's first number on.
  void fill(int tensor, DevicePointer to, int64_t elements) const {
    const int64_t bytes = dtype_bytes(list.dtype());
    const auto* begin = static_cast<const char*>(list.view().data);
    const int64_t first = tensor * kShift % kPeriod, rest = kPeriod - first;
    const Driver& driver = Driver::get();
    const auto upload = [&](int64_t at, int64_t from, int64_t count) {
      count = std::min(count, elements - at);
      if (count <= 0) return;
      ASSERT_EQ(driver.cuMemcpyHtoD_v2(to + static_cast<DevicePointer>(at * bytes),
                                       begin + from * bytes, static_cast<size_t>(count * bytes)),
                kSuccess);
    };
    upload(0, first, rest);
    upload(rest, 0, first);
    for (int64_t filled = kPeriod; filled < elements; filled *= 2) {
      ASSERT_EQ(TestDriver::get().cuMemcpyDtoD_v2(
                    to + static_cast<DevicePointer>(filled * bytes), to,
                    static_cast<size_t>(std::min(filled, elements - filled) * bytes)),
                kSuccess);
    }
  }
  cli::HostTensor list;
};

// Tokens [begin, begin + count) of axis 0 of one sample and head.
struct Piece {
  int64_t sample, head, begin, count;
};

// Copies between a tensor of the whole problem, [batch, tokens..., heads, columns], and the rows of
// a piece of it, [1, tokens..., 1, columns].
class PieceOf {
 public:
  PieceOf(const vecina_problem& whole, const Piece& piece, int64_t columns)
      : columns_(columns), heads_(whole.heads), head_(piece.head) {
    int64_t inner = 1, outer = 1;
    for (int a = 1; a < whole.rank; ++a) inner *= whole.extent[a];
    outer = whole.extent[0] * inner;
    first_token_ = piece.sample * outer + piece.begin * inner;
    num_tokens_ = piece.count * inner;
  }
  void draw(const Numbers& numbers, int tensor, cli::HostTensor& to) const {
    for (int64_t i = 0; i < num_tokens_ * columns_; ++i) {
      to.set(i, numbers.at(tensor, row(i / columns_) * columns_ + i % columns_));
    }
  }
  void download(DevicePointer from, cli::HostTensor& to) const {
    const int64_t bytes = columns_ * dtype_bytes(to.dtype());
    auto* rows = static_cast<char*>(to.view().data);
    std::vector<char> all(static_cast<size_t>(num_tokens_ * heads_ * bytes));
    ASSERT_EQ(Driver::get().cuMemcpyDtoH_v2(
                  all.data(), from + static_cast<DevicePointer>(first_token_ * heads_ * bytes),
                  all.size()),
              kSuccess);
    for (int64_t i = 0; i < num_tokens_; ++i) {
      std::memcpy(rows + i * bytes, all.data() + (i * heads_ + head_) * bytes,
                  static_cast<size_t>(bytes));
    }
  }

 private:
  int64_t row(int64_t token) const { return (first_token_ + token) * heads_ + head_; }
  int64_t columns_, heads_, head_, first_token_, num_tokens_;
};

// Those tokens of axis 0 of a piece that see and are seen as in the whole.
cli::HostTensor inner_tokens(const cli::HostTensor& tensor, int64_t skip_begin, int64_t skip_end) {
  std::vector<int64_t> shape = tensor.shape();
  const int64_t of_token = tensor.size() / shape[1];
  shape[1] -= skip_begin + skip_end;
  cli::HostTensor inner(shape, tensor.dtype());
  for (int64_t i = 0; i < inner.size(); ++i) inner.set(i, tensor.get(skip_begin * of_token + i));
  return inner;
}

std::pair<cli::Outputs, cli::Gradients> results_of(const char* backend,
                                                   const vecina_problem& problem,
                                                   const cli::Inputs& inputs) {
  const cli::ContextPtr host = cli::make_context(backend, 1);
  const cli::Outputs outputs = tests::run_forward(host.get(), problem, inputs);
  return {outputs, tests::run_backward(host.get(), problem, inputs, outputs)};
}

template <typename Visit>
void for_tensors(vecina_backward_args& args, Visit visit) {
  vecina_tensor* const list[] = {&args.query,      &args.key,      &args.value,
                                 &args.output,     &args.lse,      &args.grad_output,
                                 &args.grad_query, &args.grad_key, &args.grad_value};
  for (int i = 0; i < static_cast<int>(std::size(list)); ++i) visit(i, *list[i]);
}
constexpr int kQuery = 0, kKey = 1, kValue = 2, kGradOutput = 5;

class CudaLarge : public OnDevice, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    size_t free_bytes = 0, total_bytes = 0;
    ASSERT_EQ(TestDriver::get().cuMemGetInfo_v2(&free_bytes, &total_bytes), kSuccess);
    if (free_bytes < size_t{42} << 30) GTEST_SKIP() << "needs 42 GiB of free memory";
  }
};
// One sample of more than 2^31 elements, then many samples: halos, tiles and Hopper's kernels.
INSTANTIATE_TEST_SUITE_P(
    Problem, CudaLarge,
    testing::Values("1d 1020000 kernel_size 7 heads 33 head_dim 64 dtype bf16",
                    "2d 64x64 kernel_size 7 batch 4100 heads 4 head_dim 32 dtype f16",
                    "2d 96x96 kernel_size 15 batch 1830 heads 2 head_dim 64 dtype bf16"));

TEST_P(CudaLarge, ForwardAndBackwardAreThoseOfThePieces) {
  const vecina_problem problem = cli::parse_problem(GetParam());
  const cli::ContextPtr context = cli::make_context("", 1);
  const int64_t columns = problem.head_dim;
  int64_t tokens = problem.batch;
  for (int a = 0; a < problem.rank; ++a) tokens *= problem.extent[a];
  const int64_t elements = tokens * problem.heads * columns;
  ASSERT_GT(elements, int64_t{1} << 31);

  const Numbers numbers(problem.dtype);
  vecina_backward_args args = {};
  args.struct_size = sizeof(args);
  std::vector<GuardedMemory> memories;
  for_tensors(args, [&](int i, vecina_tensor& tensor) {
    const bool is_lse = &tensor == &args.lse;
    tensor.ndim = problem.rank + (is_lse ? 2 : 3);
    tensor.dtype = is_lse ? VECINA_F32 : problem.dtype;
    tensor.device = VECINA_CUDA;
    tensor.device_index = device().index();
    tensor.shape[0] = problem.batch;
    std::copy(problem.extent, problem.extent + problem.rank, tensor.shape + 1);
    tensor.shape[1 + problem.rank] = problem.heads;
    if (!is_lse) tensor.shape[2 + problem.rank] = columns;
    int64_t stride = 1;
    for (int d = tensor.ndim; d-- > 0; stride *= tensor.shape[d]) tensor.strides[d] = stride;
    memories.emplace_back(device(), static_cast<size_t>(stride * dtype_bytes(tensor.dtype)));
    tensor.data = reinterpret_cast<void*>(memories.back().address());
    if (i <= kValue || i == kGradOutput) numbers.fill(i, memories.back().address(), elements);
  });
  args.workspace_bytes = vecina_workspace_bytes(context.get(), &problem, 1);
  memories.emplace_back(device(), args.workspace_bytes);
  args.workspace = reinterpret_cast<void*>(memories.back().address());

  vecina_forward_args forward = {};
  forward.struct_size = sizeof(forward);
  forward.query = args.query;
  forward.key = args.key;
  forward.value = args.value;
  forward.output = args.output;
  forward.lse = args.lse;
  ASSERT_EQ(vecina_forward(context.get(), &problem, &forward, nullptr), VECINA_OK)
      << vecina_last_error();
  ASSERT_EQ(vecina_backward(context.get(), &problem, &args, nullptr), VECINA_OK)
      << vecina_last_error();
  ASSERT_EQ(Driver::get().cuStreamSynchronize(nullptr), kSuccess);
  for (const GuardedMemory& memory : memories) EXPECT_TRUE(memory.is_intact());

  // Windows of key tokens' queries reach twice as far as windows.
  const int64_t margin = 2 * problem.kernel_size[0];
  const int64_t last = problem.extent[0], count = std::min(last, 2 * margin + 16);
  const int64_t boundary = (int64_t{1} << 31) / (problem.heads * columns);  // a token
  const int64_t of_sample = tokens / problem.batch;
  const int64_t row = boundary % of_sample / (of_sample / last);
  for (const Piece piece : {Piece{0, 0, 0, count},
                            Piece{boundary / of_sample, problem.heads - 1,
                                  std::clamp<int64_t>(row - count / 2, 0, last - count), count},
                            Piece{problem.batch - 1, problem.heads / 2, last - count, count}}) {
    SCOPED_TRACE("sample " + std::to_string(piece.sample) + " from token " +
                 std::to_string(piece.begin));
    vecina_problem small = problem;
    small.batch = small.heads = small.heads_kv = 1;
    small.extent[0] = piece.count;
    const PieceOf rows(problem, piece, columns), numbers_of(problem, piece, 1);
    cli::Inputs inputs = cli::random_inputs(small, 1);
    rows.draw(numbers, kQuery, inputs.query);
    rows.draw(numbers, kKey, inputs.key);
    rows.draw(numbers, kValue, inputs.value);
    rows.draw(numbers, kGradOutput, inputs.grad_output);
    inputs.grad_lse = {};
    cli::Outputs outputs = cli::make_outputs(small);
    cli::Gradients gradients = cli::make_gradients(small);
    const auto download = [&](const PieceOf& of, const vecina_tensor& from, cli::HostTensor& to) {
      of.download(reinterpret_cast<DevicePointer>(from.data), to);
    };
    download(rows, args.output, outputs.output);
    download(numbers_of, args.lse, outputs.lse);
    download(rows, args.grad_query, gradients.query);
    download(rows, args.grad_key, gradients.key);
    download(rows, args.grad_value, gradients.value);

    const auto [exact, exact_gradients] =
        results_of("reference", cli::widened(small), cli::widened(inputs));
    const auto [plain, plain_gradients] = results_of("plain", small, inputs);
    const int64_t begin = piece.begin == 0 ? 0 : margin;
    const int64_t end = piece.begin + piece.count == last ? 0 : margin;
    const auto expect_right = [&](const char* name, const cli::HostTensor& actual,
                                  const cli::HostTensor& wanted, const cli::HostTensor& plainly) {
      const auto inner = [&](const cli::HostTensor& tensor) {
        return inner_tokens(tensor, begin, end);
      };
      const cli::Verdict verdict =
          cli::compare(name, inner(actual), inner(wanted), inner(plainly), problem.dtype);
      EXPECT_TRUE(verdict.passed) << verdict.detail;
    };
    expect_right("output", outputs.output, exact.output, plain.output);
    expect_right("grad_query", gradients.query, exact_gradients.query, plain_gradients.query);
    expect_right("grad_key", gradients.key, exact_gradients.key, plain_gradients.key);
    expect_right("grad_value", gradients.value, exact_gradients.value, plain_gradients.value);
    const cli::Verdict lse =
        cli::compare_lse(inner_tokens(outputs.lse, begin, end), inner_tokens(exact.lse, begin, end),
                         inner_tokens(plain.lse, begin, end), problem.dtype);
    EXPECT_TRUE(lse.passed) << lse.detail;
  }
}

}  // namespace
}  // namespace vecina::internal::cuda
