// The second addon: the same binding, runtime and CUDA backend over the rehearsed CUDA runtime, with a handle for tests
// to steer it.
#include "binding/addon.h"

#include "cuda_api_rehearsed.h"

namespace {

using lean::rehearsal::CudaControl;
using lean::rehearsal::Driver;

int64_t field(const Napi::Object& object, const char* name) {
  return object.Has(name) ? object.Get(name).As<Napi::Number>().Int64Value() : 0;
}

// steerCuda({ driver, devices, capability, unreadable, failAllocation, failPinned, unloadKernels, failLaunch,
// failStream, loseDevice }): what is left out is as on a healthy machine.
void steer(const Napi::CallbackInfo& info) {
  const auto options = info[0].As<Napi::Object>();
  CudaControl& control = lean::rehearsal::cuda_control();
  control.driver = static_cast<Driver>(field(options, "driver"));
  control.devices = options.Has("devices") ? static_cast<int>(field(options, "devices")) : 2;
  control.capability = options.Has("capability") ? static_cast<int>(field(options, "capability")) : 90;
  control.unreadable = options.Has("unreadable") ? static_cast<int>(field(options, "unreadable")) : -1;
  control.fail_allocation = field(options, "failAllocation");
  control.fail_pinned = field(options, "failPinned");
  control.unload_kernels = field(options, "unloadKernels") != 0;
  control.fail_launch = field(options, "failLaunch");
  control.fail_stream = static_cast<int>(field(options, "failStream"));
  control.lose_device = field(options, "loseDevice");
  control.lost = false;
}

Napi::Value alive(const Napi::CallbackInfo& info) {
  const CudaControl& control = lean::rehearsal::cuda_control();
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("allocations", static_cast<double>(control.live_allocations));
  result.Set("bytes", static_cast<double>(control.live_bytes));
  result.Set("streams", static_cast<double>(control.live_streams));
  result.Set("events", static_cast<double>(control.live_events));
  result.Set("graphs", static_cast<double>(control.live_graphs));
  result.Set("pinned", static_cast<double>(control.live_pinned));
  result.Set("launches", static_cast<double>(control.launches));
  result.Set("faults", static_cast<double>(control.faults));
  result.Set("waits", static_cast<double>(control.waits));
  return result;
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  lean::binding::initialise(env, exports);
  exports.Set("steerCuda", Napi::Function::New(env, steer, "steerCuda"));
  exports.Set("cudaAlive", Napi::Function::New(env, alive, "cudaAlive"));
  return exports;
}

}  // namespace

NODE_API_MODULE(lean_attention_rehearsed, initialise)
