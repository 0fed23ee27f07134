// SPDX-License-Identifier: MIT
// What a caller on a GPU relies on besides the numbers: everything goes to the stream that was
// named, nothing waits or allocates, graphs record it, threads share a device, contexts stay as
// they were, and errors leave a process that still works.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cli/conformance.h"
#include "device_call.h"
#include "plan_cases.h"
#include "results.h"

namespace vecina::internal::cuda {
namespace {

using ForwardCall = DeviceCall<vecina_forward_args>;
using BackwardCall = DeviceCall<vecina_backward_args>;

std::vector<uint64_t> bits_of_all(std::initializer_list<const cli::HostTensor*> tensors) {
  std::vector<uint64_t> bits;
  for (const cli::HostTensor* tensor : tensors) {
    const std::vector<uint64_t> more = tests::bits_of(*tensor);
    bits.insert(bits.end(), more.begin(), more.end());
  }
  return bits;
}

// A step of training on tensors of the device: two attentions, their merge, and the gradients of
// the first one.
class Step {
 public:
  Step(const Device& device, const char* line)
      : problem_(cli::parse_problem(line)),
        inputs_{cli::random_inputs(problem_, 1), cli::random_inputs(problem_, 2)},
        parts_{cli::make_outputs(problem_), cli::make_outputs(problem_)},
        merged_(cli::make_outputs(problem_)),
        gradients_(cli::make_gradients(problem_)),
        forward_{ForwardCall(device, cli::forward_args(inputs_[0], parts_[0]), 0),
                 ForwardCall(device, cli::forward_args(inputs_[1], parts_[1]), 0)},
        merge_(device, cli::forward_args(inputs_[0], merged_), 0),
        context_(cli::make_context("", 1)),
        backward_(device, cli::backward_args(inputs_[0], parts_[0], gradients_),
                  vecina_workspace_bytes(context_.get(), &problem_, 1)) {
    backward_.args.output = forward_[0].args.output;
    backward_.args.lse = forward_[0].args.lse;
  }

  // Other numbers in the same tensors.
  void draw(uint64_t seed) {
    cli::Random random(seed);
    for (cli::Inputs& inputs : inputs_) {
      for (auto member : {&cli::Inputs::query, &cli::Inputs::key, &cli::Inputs::value,
                          &cli::Inputs::additional_key, &cli::Inputs::additional_value,
                          &cli::Inputs::bias, &cli::Inputs::grad_output, &cli::Inputs::grad_lse}) {
        cli::HostTensor& tensor = inputs.*member;
        for (int64_t i = 0; tensor.given() && i < tensor.size(); ++i) {
          tensor.set(i, 4.0 * random.uniform() - 2.0);
        }
      }
    }
    for (const ForwardCall& call : forward_) call.upload();
    merge_.upload();
    backward_.upload();
  }

  vecina_status enqueue(vecina_context* context, void* stream) const {
    for (const ForwardCall& call : forward_) {
      const vecina_status status = vecina_forward(context, &problem_, &call.args, stream);
      if (status != VECINA_OK) return status;
    }
    const vecina_tensor outputs[] = {forward_[0].args.output, forward_[1].args.output};
    const vecina_tensor lses[] = {forward_[0].args.lse, forward_[1].args.lse};
    const vecina_status status = vecina_merge_attentions(
        context, 2, outputs, lses, &merge_.args.output, &merge_.args.lse, stream);
    if (status != VECINA_OK) return status;
    return vecina_backward(context, &problem_, &backward_.args, stream);
  }
  vecina_status enqueue(void* stream) const { return enqueue(context_.get(), stream); }

  std::vector<uint64_t> results() const {
    for (const ForwardCall& call : forward_) call.download();
    merge_.download();
    backward_.download();
    return bits_of_all({&parts_[0].output, &parts_[0].lse, &parts_[1].output, &parts_[1].lse,
                        &merged_.output, &merged_.lse, &gradients_.query, &gradients_.key,
                        &gradients_.value});
  }

  // Draws, runs and waits.
  std::vector<uint64_t> run(uint64_t seed, const Stream& stream) {
    draw(seed);
    EXPECT_EQ(enqueue(stream.get()), VECINA_OK) << vecina_last_error();
    stream.wait();
    return results();
  }

 private:
  vecina_problem problem_;
  cli::Inputs inputs_[2];
  cli::Outputs parts_[2], merged_;
  cli::Gradients gradients_;
  ForwardCall forward_[2], merge_;
  cli::ContextPtr context_;
  BackwardCall backward_;
};

// A stream's work that ends when it is told to, or after ten seconds.
class Gate {
 public:
  explicit Gate(const Stream& stream) {
    EXPECT_EQ(TestDriver::get().cuLaunchHostFunc(stream.get(), wait, &is_open_), kSuccess);
  }
  void open() { is_open_ = true; }

 private:
  static void wait(void* is_open) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!*static_cast<std::atomic<bool>*>(is_open) && std::chrono::steady_clock::now() < end) {
      std::this_thread::yield();
    }
  }
  std::atomic<bool> is_open_{false};
};

bool is_busy(const Stream& stream) {
  constexpr Result kNotReady = 600;
  return TestDriver::get().cuStreamQuery(stream.get()) == kNotReady;
}

struct Graph {
  GraphHandle graph = nullptr;
  GraphExecHandle exec = nullptr;
  ~Graph() {
    if (exec != nullptr) Driver::get().cuGraphExecDestroy(exec);
    if (graph != nullptr) Driver::get().cuGraphDestroy(graph);
  }
};
constexpr int kCaptureGlobal = 0;  // the strictest mode, PyTorch's default

using CudaCalls = OnDevice;

TEST_F(CudaCalls, AreRecordedInGraphsAndReplayedWithOtherInputs) {
  const Driver& driver = Driver::get();
  for (const char* line : tests::kCallLines) {
    SCOPED_TRACE(line);
    const Stream stream;
    Step step(device(), line);
    const std::vector<uint64_t> first = step.run(10, stream);  // plans
    const std::vector<uint64_t> second = step.run(20, stream);
    ASSERT_NE(first, second);
    Graph graph;
    ASSERT_EQ(driver.cuStreamBeginCapture_v2(stream.get(), kCaptureGlobal), kSuccess);
    const vecina_status status = step.enqueue(stream.get());
    ASSERT_EQ(driver.cuStreamEndCapture(stream.get(), &graph.graph), kSuccess);
    ASSERT_EQ(status, VECINA_OK) << vecina_last_error();
    ASSERT_EQ(driver.cuGraphInstantiateWithFlags(&graph.exec, graph.graph, 0), kSuccess);
    for (const uint64_t seed : {10u, 20u, 10u}) {
      step.draw(seed);
      ASSERT_EQ(driver.cuGraphLaunch(graph.exec, stream.get()), kSuccess);
      stream.wait();
      EXPECT_EQ(step.results(), seed == 10 ? first : second);
    }
  }
}

TEST_F(CudaCalls, ReturnBeforeTheStreamGetsToThemAndAllocateNothing) {
  for (const char* line : tests::kCallLines) {
    SCOPED_TRACE(line);
    const Stream stream, side;
    Step step(device(), line), other(device(), line);
    const std::vector<uint64_t> wanted = step.run(10, stream);
    ASSERT_EQ(other.run(10, side), wanted);
    step.draw(10);
    other.draw(10);
    size_t before = 0, after = 0, total = 0;
    ASSERT_EQ(TestDriver::get().cuMemGetInfo_v2(&before, &total), kSuccess);
    Gate gate(stream);
    ASSERT_EQ(step.enqueue(stream.get()), VECINA_OK) << vecina_last_error();
    EXPECT_TRUE(is_busy(stream));
    // Another stream does not wait for this one.
    ASSERT_EQ(other.enqueue(side.get()), VECINA_OK) << vecina_last_error();
    side.wait();
    EXPECT_TRUE(is_busy(stream));
    ASSERT_EQ(TestDriver::get().cuMemGetInfo_v2(&after, &total), kSuccess);
    EXPECT_EQ(before, after);
    gate.open();
    stream.wait();
    EXPECT_EQ(step.results(), wanted);
    EXPECT_EQ(other.results(), wanted);
  }
}

TEST_F(CudaCalls, OfManyThreadsShareADevice) {
  constexpr size_t kThreads = 2 * std::size(tests::kCallLines);
  constexpr int kRounds = 5;
  std::vector<std::unique_ptr<Step>> steps;
  std::vector<std::vector<uint64_t>> wanted;
  for (size_t i = 0; i < kThreads; ++i) {
    steps.push_back(
        std::make_unique<Step>(device(), tests::kCallLines[i % std::size(tests::kCallLines)]));
    wanted.push_back(steps.back()->run(10 + i, Stream()));
  }
  const cli::ContextPtr shared = cli::make_context("", 1);  // plans and loads from all at once
  std::atomic<size_t> num_wrong{0};
  std::atomic<bool> may_start{false};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const Device::Current current(device());  // for the test's own copies
      const Stream stream;
      while (!may_start) std::this_thread::yield();
      for (int round = 0; round < kRounds; ++round) {
        steps[i]->draw(10 + i);
        const vecina_status status = steps[i]->enqueue(shared.get(), stream.get());
        stream.wait();
        if (status != VECINA_OK || steps[i]->results() != wanted[i]) ++num_wrong;
      }
    });
  }
  may_start = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_wrong, 0u);
}

TEST_F(CudaCalls, NeedNoContextAndLeaveTheCallersCurrent) {
  const Driver& driver = Driver::get();
  Step step(device(), tests::kCallLines[0]);
  std::vector<uint64_t> wanted;
  {
    const Stream stream;
    wanted = step.run(10, stream);
  }
  step.draw(10);
  ContextHandle left = nullptr;
  std::thread([&] {  // a new thread has no context
    EXPECT_EQ(step.enqueue(nullptr), VECINA_OK) << vecina_last_error();
    driver.cuCtxGetCurrent(&left);
  })
      .join();
  EXPECT_EQ(left, nullptr);
  EXPECT_EQ(driver.cuStreamSynchronize(nullptr), kSuccess);
  EXPECT_EQ(step.results(), wanted);

  step.draw(10);
  DeviceHandle handle = 0;
  ContextHandle own = nullptr;
  ASSERT_EQ(driver.cuDeviceGet(&handle, device().index()), kSuccess);
  ASSERT_EQ(TestDriver::get().cuCtxCreate_v2(&own, 0, handle), kSuccess);  // and makes it current
  EXPECT_EQ(step.enqueue(nullptr), VECINA_OK) << vecina_last_error();
  driver.cuCtxGetCurrent(&left);
  EXPECT_EQ(left, own);
  EXPECT_EQ(TestDriver::get().cuCtxDestroy_v2(own), kSuccess);
  EXPECT_EQ(driver.cuStreamSynchronize(nullptr), kSuccess);
  EXPECT_EQ(step.results(), wanted);
}

TEST_F(CudaCalls, RefuseADeviceThatIsNotThere) {
  const int count = Driver::get().num_devices;
  const cli::ContextPtr context = cli::make_context("", 1);
  const vecina_problem problem = cli::parse_problem(tests::kCallLines[0]);
  const cli::Inputs inputs = cli::random_inputs(problem, 1);
  const cli::Outputs outputs = cli::make_outputs(problem);
  ForwardCall call(device(), cli::forward_args(inputs, outputs), 0);
  NamedTensor list[kMaxTensors];
  for (int i = 0, n = list_tensors(call.args, list); i < n; ++i) {
    const_cast<vecina_tensor*>(list[i].tensor)->device_index = count;  // a member of call.args
  }
  EXPECT_EQ(vecina_forward(context.get(), &problem, &call.args, nullptr), VECINA_UNSUPPORTED);
  tests::expect_last_error({fmt::format("device_index {}", count)});
}

// The second GPU. Tests keep the first one current; their own copies need the other.
class TwoDevices : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    if (Driver::get().num_devices < 2) GTEST_SKIP() << "needs two GPUs";
    ASSERT_TRUE(Device::open(1, &other_).ok());
  }
  const Device& other() const { return *other_; }

 private:
  std::unique_ptr<Device> other_;
};

// A step on a device, with a stream of that device, whichever is current.
struct StepOn {
  StepOn(const Device& of, const char* line) : device(of) {
    const Device::Current current(device);
    stream = std::make_unique<Stream>();
    step = std::make_unique<Step>(device, line);
  }
  ~StepOn() {
    const Device::Current current(device);
    step.reset();
    stream.reset();
  }
  StepOn(const StepOn&) = delete;
  StepOn& operator=(const StepOn&) = delete;

  void draw(uint64_t seed) const {
    const Device::Current current(device);
    step->draw(seed);
  }
  std::vector<uint64_t> wait() const {
    const Device::Current current(device);
    stream->wait();
    return step->results();
  }
  // The call itself is made with the caller's device current.
  std::vector<uint64_t> run(uint64_t seed, vecina_context* context) const {
    draw(seed);
    EXPECT_EQ(step->enqueue(context, stream->get()), VECINA_OK) << vecina_last_error();
    return wait();
  }

  const Device& device;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Step> step;
};
constexpr uint64_t kSeeds[] = {20, 10};  // in turn, so that results of the last run do not count

// One context keeps plans and kernels of both; those of one device fail on the other.
TEST_F(TwoDevices, TakeTurnsInOneContextWithEitherCurrent) {
  const cli::ContextPtr shared = cli::make_context("", 1);
  for (const char* line : tests::kCallLines) {
    SCOPED_TRACE(line);
    const StepOn first(device(), line), second(other(), line);
    std::vector<std::vector<uint64_t>> wanted;
    for (const uint64_t seed : kSeeds) wanted.push_back(first.run(seed, shared.get()));
    ASSERT_NE(wanted[0], wanted[1]);
    for (const Device* chosen : {&device(), &other()}) {
      const Device::Current current(*chosen);
      ContextHandle before = nullptr, after = nullptr;
      Driver::get().cuCtxGetCurrent(&before);
      for (size_t i = 0; i < std::size(kSeeds); ++i) {
        for (const StepOn* on : {&second, &first}) {
          EXPECT_EQ(on->run(kSeeds[i], shared.get()), wanted[i]) << on->device.index();
          Driver::get().cuCtxGetCurrent(&after);
          EXPECT_EQ(after, before);
        }
      }
    }
  }
}

TEST_F(TwoDevices, AreUsedByThreadsAtTheSameTime) {
  constexpr int kRounds = 3;
  const cli::ContextPtr shared = cli::make_context("", 1);  // plans and loads from all at once
  std::atomic<size_t> num_wrong{0};
  std::vector<std::thread> threads;
  for (const char* line : tests::kCallLines) {
    const StepOn first(device(), line);
    const cli::ContextPtr own = cli::make_context("", 1);
    std::vector<std::vector<uint64_t>> wanted;
    for (const uint64_t seed : kSeeds) wanted.push_back(first.run(seed, own.get()));
    for (const Device* of : {&device(), &other()}) {
      threads.emplace_back([&, line, of, wanted] {
        const StepOn on(*of, line);
        for (int round = 0; round < kRounds; ++round) {
          for (size_t i = 0; i < std::size(kSeeds); ++i) {
            if (on.run(kSeeds[i], shared.get()) != wanted[i]) ++num_wrong;
          }
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_wrong, 0u);
}

TEST_F(TwoDevices, RecordAGraphOfTheOneThatIsNotCurrent) {
  const Driver& driver = Driver::get();
  const StepOn second(other(), tests::kCallLines[0]);
  const cli::ContextPtr context = cli::make_context("", 1);
  const std::vector<uint64_t> wanted = second.run(10, context.get());
  ASSERT_NE(second.run(20, context.get()), wanted);
  Graph graph;
  ASSERT_EQ(driver.cuStreamBeginCapture_v2(second.stream->get(), kCaptureThreadLocal), kSuccess);
  const vecina_status status = second.step->enqueue(context.get(), second.stream->get());
  ASSERT_EQ(driver.cuStreamEndCapture(second.stream->get(), &graph.graph), kSuccess);
  ASSERT_EQ(status, VECINA_OK) << vecina_last_error();
  const Device::Current current(other());
  ASSERT_EQ(driver.cuGraphInstantiateWithFlags(&graph.exec, graph.graph, 0), kSuccess);
  second.draw(10);
  ASSERT_EQ(driver.cuGraphLaunch(graph.exec, second.stream->get()), kSuccess);
  EXPECT_EQ(second.wait(), wanted);
}

TEST_F(TwoDevices, DoNotMixInOneCall) {
  const cli::ContextPtr context = cli::make_context("", 1);
  const vecina_problem problem = cli::parse_problem(tests::kCallLines[2]);
  const cli::Inputs inputs = cli::random_inputs(problem, 1);
  const cli::Outputs outputs = cli::make_outputs(problem);
  ForwardCall call(device(), cli::forward_args(inputs, outputs), 0);
  call.args.key.device_index = 1;
  EXPECT_EQ(vecina_forward(context.get(), &problem, &call.args, nullptr), VECINA_INVALID_ARGUMENT);
  tests::expect_last_error({"must be on one"});
}

TEST_F(CudaCalls, SayWhenMemoryIsShortAndGoOn) {
  const cli::ContextPtr context = cli::make_context("cuda", 1);
  // Its inputs are one row, its output is half a terabyte of addresses.
  const vecina_problem problem =
      cli::parse_problem("1d 64 kernel_size 7 batch 16777216 heads 4 head_dim 32");
  const cli::HostTensor row({problem.head_dim}, VECINA_F32);
  const auto tensor_of = [&](const std::vector<int64_t>& shape, void* data, bool is_dense) {
    vecina_tensor tensor = row.view();
    tensor.data = data;
    tensor.ndim = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), tensor.shape);
    int64_t stride = 1;
    for (size_t d = shape.size(); d-- > 0; stride *= shape[d]) {
      tensor.strides[d] = is_dense || d + 1 == shape.size() ? stride : 0;
    }
    return tensor;
  };
  const std::vector<int64_t> shape = {problem.batch, 64, problem.heads, problem.head_dim};
  const size_t bytes =
      static_cast<size_t>(problem.batch * 64 * problem.heads * problem.head_dim * 4);
  void* room = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(room, MAP_FAILED);
  vecina_forward_args args = {};
  args.struct_size = sizeof(args);
  args.query = args.key = args.value = tensor_of(shape, row.view().data, false);
  args.output = tensor_of(shape, room, true);
  EXPECT_EQ(vecina_forward(context.get(), &problem, &args, nullptr), VECINA_OUT_OF_MEMORY);
  tests::expect_last_error({"free memory"});
  munmap(room, bytes);
  const Stream stream;
  Step step(device(), tests::kCallLines[0]);
  EXPECT_EQ(step.run(10, stream), step.run(10, stream));
}

// In a process of its own: no context of a GPU survives such an error. 0 if all goes as it must.
int provoke_a_device_error() {
  std::unique_ptr<Device> device;
  if (!Device::open(0, &device).ok()) return 3;
  const Device::Current current(*device);
  const cli::ContextPtr context = cli::make_context("", 1);
  const vecina_problem problem = cli::parse_problem(tests::kCallLines[0]);
  const cli::Inputs inputs = cli::random_inputs(problem, 1);
  const cli::Outputs outputs = cli::make_outputs(problem);
  ForwardCall call(*device, cli::forward_args(inputs, outputs), 0);
  call.upload();
  const auto run = [&] { return vecina_forward(context.get(), &problem, &call.args, nullptr); };
  if (run() != VECINA_OK) return 4;
  call.args.output.data = reinterpret_cast<void*>(uintptr_t{0x10000});
  if (run() != VECINA_OK) return 5;  // the GPU finds out later
  if (Driver::get().cuStreamSynchronize(nullptr) == kSuccess) return 6;
  if (run() != VECINA_DEVICE_ERROR) return 7;
  std::fprintf(stderr, "%s\n", vecina_last_error());
  const cli::ContextPtr host = cli::make_context("cpu", 1);
  const vecina_forward_args on_host = cli::forward_args(inputs, outputs);
  return vecina_forward(host.get(), &problem, &on_host, nullptr) == VECINA_OK ? 0 : 8;
}

TEST_F(CudaCalls, ReportADeviceErrorAndLeaveTheProcessUsable) {
  if (is_bare()) GTEST_SKIP() << "compute-sanitizer would report what this provokes";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(std::exit(provoke_a_device_error()), testing::ExitedWithCode(0),
              "cuLaunchKernelEx failed");
}

// Without a plan a call that is captured compiles and loads its kernels first.
TEST_F(CudaCalls, ThatWereNotPlannedCanBeCaptured) {
  const Driver& driver = Driver::get();
  const Stream stream;
  Step planned(device(), tests::kCallLines[0]), step(device(), tests::kCallLines[0]);
  const std::vector<uint64_t> wanted = planned.run(10, stream);
  step.draw(10);
  Graph graph;
  ASSERT_EQ(driver.cuStreamBeginCapture_v2(stream.get(), kCaptureGlobal), kSuccess);
  const vecina_status status = step.enqueue(stream.get());
  const std::string sentence = vecina_last_error();
  EXPECT_EQ(driver.cuStreamEndCapture(stream.get(), &graph.graph), kSuccess);
  EXPECT_EQ(status, VECINA_OK) << sentence;
  if (graph.graph != nullptr && status == VECINA_OK) {
    ASSERT_EQ(driver.cuGraphInstantiateWithFlags(&graph.exec, graph.graph, 0), kSuccess);
    ASSERT_EQ(driver.cuGraphLaunch(graph.exec, stream.get()), kSuccess);
    stream.wait();
    EXPECT_EQ(step.results(), wanted);
  }
  EXPECT_EQ(step.run(10, stream), wanted);  // in any case
}

}  // namespace
}  // namespace vecina::internal::cuda
