// What libtorch offers in C++ and tch does not wrap. Each function returns false on an exception and leaves its
// message in `lockstep_torch_error`: nothing may unwind into Rust.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <c10/core/AutogradState.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/version.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

// gelu.cpp
at::Tensor lockstep_gelu(const at::Tensor& x);
bool lockstep_gelu_is_ours();

namespace {
thread_local std::string last_error;

template <typename Body>
bool guarded(Body body) {
  try {
    body();
    return true;
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return false;
}
// Called with the index of a leaf and its gradient, which the callee then owns. It must not unwind.
using GradientReady = void (*)(void* context, size_t leaf, at::Tensor* gradient);

std::atomic<int64_t> live_hooks{0};

c10::Stream current_stream(const c10::impl::VirtualGuardImpl& cuda, int device) {
  return cuda.getStream(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)));
}

// Runs when autograd has stored a leaf's gradient, on the thread that called backward, and takes it away.
struct TakeGradient final : torch::autograd::PostAccumulateGradHook {
  TakeGradient(GradientReady ready, void* context, size_t leaf) : ready_(ready), context_(context), leaf_(leaf) {
    ++live_hooks;
  }
  ~TakeGradient() override { --live_hooks; }

  void operator()(const torch::autograd::Variable& variable) override {
    at::Tensor& slot = variable.mutable_grad();
    if (!slot.defined()) return;
    auto* gradient = new at::Tensor(std::move(slot));
    slot.reset();
    ready_(context_, leaf_, gradient);
  }

 private:
  GradientReady ready_;
  void* context_;
  size_t leaf_;
};
}  // namespace

extern "C" {

const char* lockstep_torch_error() { return last_error.c_str(); }

// Calls `ready` for each gradient of a leaf, until the hook is removed. A leaf has one such hook.
bool lockstep_set_hook(at::Tensor* leaf, size_t index, GradientReady ready, void* context) {
  return guarded([&] {
    torch::autograd::impl::set_post_acc_grad_hooks(*leaf, std::make_unique<TakeGradient>(ready, context, index));
  });
}

bool lockstep_remove_hook(at::Tensor* leaf) {
  return guarded([&] { torch::autograd::impl::set_post_acc_grad_hooks(*leaf, nullptr); });
}

// From now on backward passes that this thread begins run on it alone. Otherwise autograd has a thread for each GPU, on which
// the hooks of leaves that lie there would be called.
bool lockstep_backward_on_this_thread() {
  return guarded([] { c10::AutogradState::get_tls_state().set_multithreading_enabled(false); });
}

// Hooks that exist in this process, to see that none leaks.
int64_t lockstep_live_hooks() { return live_hooks.load(); }

// torch.optim.AdamW(fused=True) on one tensor. `step` is the number of this update, from 1.
bool lockstep_fused_adamw(at::Tensor* parameter, at::Tensor* gradient, at::Tensor* exp_avg, at::Tensor* exp_avg_sq,
                          float step, double lr, double beta1, double beta2, double weight_decay, double eps) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    // Where the kernel runs: on a GPU it reads the number there.
    at::Tensor state_step = at::full({}, step, parameter->options().dtype(at::kFloat));
    at::_fused_adamw_({*parameter}, {*gradient}, {*exp_avg}, {*exp_avg_sq}, {}, {state_step}, lr, beta1, beta2,
                      weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

// torch.optim.SGD(fused=True) without weight decay of its own on one tensor.
bool lockstep_fused_sgd(at::Tensor* parameter, at::Tensor* gradient, at::Tensor* momentum_buffer, double lr,
                        double momentum, bool is_first_step) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    // Without momentum the kernel takes no buffers.
    std::vector<at::Tensor> buffers;
    if (momentum != 0.0) buffers.push_back(*momentum_buffer);
    at::_fused_sgd_({*parameter}, {*gradient}, buffers, /*weight_decay=*/0.0, momentum, lr,
                    /*dampening=*/0.0, /*nesterov=*/false, /*maximize=*/false, is_first_step);
  });
}

// The result is the caller's.
bool lockstep_gelu_tanh(at::Tensor* x, at::Tensor** result) {
  return guarded([&] { *result = new at::Tensor(lockstep_gelu(*x)); });
}

bool lockstep_gelu_is_fast() { return lockstep_gelu_is_ours(); }

// torch.autocast(device, dtype), the device a GPU or the CPU: bfloat16, or float16 if `half`. Of the calling thread, until `lockstep_autocast_leave`.
bool lockstep_autocast_enter(bool on_gpu, bool half) {
  return guarded([&] {
    auto device = on_gpu ? at::kCUDA : at::kCPU;
    at::autocast::set_autocast_dtype(device, half ? at::kHalf : at::kBFloat16);
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::increment_nesting();
  });
}

// The casts of parameters are dropped with the outermost autocast, as in Python.
bool lockstep_autocast_leave(bool on_gpu, bool keep_casts) {
  return guarded([&] {
    at::autocast::set_autocast_enabled(on_gpu ? at::kCUDA : at::kCPU, false);
    if (at::autocast::decrement_nesting() == 0 && !keep_casts) at::autocast::clear_cache();
  });
}

bool lockstep_set_deterministic(bool deterministic) {
  return guarded([&] {
    at::globalContext().setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
    // Otherwise libtorch fills every tensor that an operation is about to write: 1.7 % of a profile, for no bit of the result.
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  });
}

// torch.backends.cpu.get_cpu_capability() and torch.__config__.show(): valid until the next call.
const char* lockstep_cpu_capability() {
  static std::string text;
  guarded([&] { text = at::get_cpu_capability(); });
  return text.c_str();
}

const char* lockstep_torch_config() {
  static std::string text;
  guarded([&] { text = at::show_config(); });
  return text.c_str();
}

// Streams by libtorch's device-independent interface: nothing of CUDA is linked, so that one program runs with both kinds
// of libtorch. Without its CUDA half each function fails.
bool lockstep_stream_new(int device, int64_t* id, void** native) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    const c10::Stream stream = cuda.getStreamFromGlobalPool(
        c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)), /*isHighPriority=*/true);
    *id = stream.id();
    *native = stream.native_handle();
  });
}

// Makes a stream the one that this thread's operations go to; `previous` gets the one before.
bool lockstep_stream_exchange(int device, int64_t id, int64_t* previous) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    cuda.setDevice(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)));
    *previous = cuda.exchangeStream(
        c10::Stream::unpack3(id, static_cast<c10::DeviceIndex>(device), c10::DeviceType::CUDA)).id();
  });
}

// The stream that this thread's operations on a device go to.
bool lockstep_stream_current(int device, int64_t* id, void** native) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    const c10::Stream stream = current_stream(cuda, device);
    *id = stream.id();
    *native = stream.native_handle();
  });
}

// Makes a device this thread's current one: what asks CUDA and not libtorch, as NCCL does, takes that.
bool lockstep_set_device(int device) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    cuda.setDevice(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)));
  });
}

// An event behind all that this thread's current stream has been given so far. It is the caller's.
bool lockstep_event_record(int device, c10::Event** event) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    auto recorded = std::make_unique<c10::Event>(c10::DeviceType::CUDA);
    recorded->record(current_stream(cuda, device));
    *event = recorded.release();
  });
}

// What this thread's current stream is given from now on waits for the event; the thread does not.
bool lockstep_event_wait(int device, const c10::Event* event) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    event->block(current_stream(cuda, device));
  });
}

void lockstep_event_free(c10::Event* event) {
  guarded([&] { delete event; });
}

bool lockstep_stream_query(int device, int64_t id, bool* done) {
  return guarded([&] {
    *done = c10::Stream::unpack3(id, static_cast<c10::DeviceIndex>(device), c10::DeviceType::CUDA).query();
  });
}

// What tensors take of a device's memory now, and what they took at most, by the interface that all devices' allocators have.
bool lockstep_gpu_memory(int device, int64_t* bytes, int64_t* bytes_max) {
  return guarded([&] {
    const auto stats = c10::getDeviceAllocator(c10::DeviceType::CUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto& all = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
    *bytes = all.current;
    *bytes_max = all.peak;
  });
}

// What makes CUDA's kernels repeatable, besides `lockstep_set_deterministic` and CUBLAS_WORKSPACE_CONFIG.
bool lockstep_set_cuda_repeatable(bool deterministic, bool allow_tf32) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setDeterministicCuDNN(deterministic);
    context.setBenchmarkCuDNN(!deterministic);
    context.setAllowTF32CuBLAS(allow_tf32);
    context.setAllowTF32CuDNN(allow_tf32);
  });
}

const char* lockstep_torch_version() { return TORCH_VERSION; }

}  // extern "C"
