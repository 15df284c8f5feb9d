// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * A simulated TDX module and VMM under the real tdx-guest driver.
 *
 * The driver reaches both through three functions of the core kernel. A kprobe at the entry of each
 * sends its callers to the function of ours that has the same arguments, in the caller's own
 * context. Everything above these three functions is the kernel's: the device, configfs-tsm and the
 * measurement files.
 *
 *   /dev/tdx_shim_report  the TD report, 1024 bytes: registers and other fields are set by user
 *                         space. Report data and hashes are filled in per call.
 *   /dev/tdx_shim_quote   the host's quoting service: a read waits for a request and returns its TD
 *                         report, a write answers it with a quote (an empty one: a failure). While
 *                         it is not open, requests fail as they do on a host without the service.
 *
 * Nothing here is secret or protected: the report's MAC is not computed.
 */
#include <asm/cpufeature.h>
#include <asm/processor.h>
#include <crypto/hash.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include "shim.h"

#define REPORT_SIZE 1024
#define DIGEST_SIZE 48
#define RTMR_COUNT 4

/* Offsets in a TD report (Intel TDX Module ABI, TDREPORT_STRUCT). */
#define TCB_INFO_HASH_AT 32
#define TD_INFO_HASH_AT 80
#define REPORT_DATA_AT 128
#define REPORT_DATA_SIZE 64
#define TCB_INFO_AT 256
#define TCB_INFO_SIZE 239
#define TD_INFO_AT 512
#define TD_INFO_SIZE 512
#define RTMR_AT 720

/* Statuses in the shared buffer (Intel TDX Guest-Host Communication Interface, GetQuote). */
#define QUOTE_DONE 0
#define QUOTE_IN_FLIGHT (~0UL)
#define QUOTE_ERROR 0x8000000000000000UL
#define QUOTE_NO_SERVICE 0x8000000000000001UL

/* Buffer shared by driver and VMM: the request, replaced by the response. */
struct quote_buffer {
	u64 version;
	u64 status;
	u32 in_len;
	u32 out_len;
	u8 data[];
};

/* Faults; zero: no fault. */
static int report_err;	   /* errno of TDG.MR.REPORT, negative */
static int extend_err;	   /* errno of TDG.MR.RTMR.EXTEND, negative */
static ulong quote_err;	   /* return value of the GetQuote hypercall itself */
static ulong quote_status; /* status of every request */
static int quote_len = -1; /* reported length of a successful quote; -1: no fault */
module_param(report_err, int, 0600);
module_param(extend_err, int, 0600);
module_param(quote_err, ulong, 0600);
module_param(quote_status, ulong, 0600);
module_param(quote_len, int, 0600);

/* Time that the hypercall waits for the service, in ms; 0: return with the request in flight. */
static uint quote_wait_ms = 10000;
module_param(quote_wait_ms, uint, 0600);

/* Number of the driver's calls. */
static atomic_t report_calls, extend_calls, quote_calls;
module_param_named(report_calls, report_calls.counter, int, 0600);
module_param_named(extend_calls, extend_calls.counter, int, 0600);
module_param_named(quote_calls, quote_calls.counter, int, 0600);

static struct crypto_shash *sha384;

/* ---- the TDX module ------------------------------------------------------------------------- */

static u8 td_report[REPORT_SIZE] = {0x81};
SHIM_BYTES(tdx_shim_report, td_report, REPORT_SIZE);

static int shim_get_report0(u8 *reportdata, u8 *tdreport)
{
	int err;

	atomic_inc(&report_calls);
	if (shim_strikes(report_err))
		return report_err;
	mutex_lock(&tdx_shim_report.lock);
	/* Some kernels pass one buffer for both, so the report data is copied first. */
	memcpy(td_report + REPORT_DATA_AT, reportdata, REPORT_DATA_SIZE);
	err = crypto_shash_tfm_digest(sha384, td_report + TCB_INFO_AT, TCB_INFO_SIZE,
				      td_report + TCB_INFO_HASH_AT);
	if (!err)
		err = crypto_shash_tfm_digest(sha384, td_report + TD_INFO_AT, TD_INFO_SIZE,
					      td_report + TD_INFO_HASH_AT);
	if (!err)
		memcpy(tdreport, td_report, REPORT_SIZE);
	mutex_unlock(&tdx_shim_report.lock);
	return err;
}

static int shim_extend_rtmr(u8 index, u8 *data)
{
	u8 both[2 * DIGEST_SIZE];
	u8 *rtmr;
	int err;

	atomic_inc(&extend_calls);
	if (shim_strikes(extend_err))
		return extend_err;
	if (index >= RTMR_COUNT)
		return -EINVAL;
	rtmr = td_report + RTMR_AT + index * DIGEST_SIZE;
	mutex_lock(&tdx_shim_report.lock);
	memcpy(both, rtmr, DIGEST_SIZE);
	memcpy(both + DIGEST_SIZE, data, DIGEST_SIZE);
	err = crypto_shash_tfm_digest(sha384, both, sizeof(both), rtmr);
	mutex_unlock(&tdx_shim_report.lock);
	return err;
}

/* ---- the VMM and its quoting service -------------------------------------------------------- */

static DEFINE_MUTEX(service_lock);
static DECLARE_WAIT_QUEUE_HEAD(service_wait);
static bool service_open;
static struct quote_buffer *in_flight; /* the one request: the driver has one buffer */
static size_t in_flight_room;	       /* bytes for a quote */
static bool in_flight_taken;	       /* by the service */

/* End the request in flight. The status goes last: the driver polls it without a lock. */
static void complete_request(u64 status, u32 out_len)
{
	in_flight->out_len = out_len;
	smp_store_release(&in_flight->status, status);
	in_flight = NULL;
	wake_up_all(&service_wait);
}

/* Pass a request to the service; false if its device is not open. */
static bool submit_request(struct quote_buffer *buffer, size_t room)
{
	bool there;

	mutex_lock(&service_lock);
	there = service_open;
	if (there) {
		buffer->status = QUOTE_IN_FLIGHT;
		in_flight = buffer;
		in_flight_room = room;
		in_flight_taken = false;
		wake_up_all(&service_wait);
	}
	mutex_unlock(&service_lock);
	return there;
}

static u64 shim_get_quote(u8 *buf, size_t size)
{
	struct quote_buffer *buffer = (struct quote_buffer *)buf;

	atomic_inc(&quote_calls);
	if (shim_strikes(quote_err))
		return quote_err;
	if (shim_strikes(quote_status)) {
		buffer->status = quote_status;
	} else if (shim_strikes(quote_len >= 0)) {
		buffer->out_len = quote_len;
		buffer->status = QUOTE_DONE;
	} else if (!submit_request(buffer, size - sizeof(*buffer))) {
		buffer->status = QUOTE_NO_SERVICE;
	} else {
		/* A signal ends only the waiting; the driver polls for the request then. */
		wait_event_interruptible_timeout(service_wait, READ_ONCE(in_flight) != buffer,
						 msecs_to_jiffies(quote_wait_ms));
	}
	return 0;
}

static int service_device_open(struct inode *inode, struct file *file)
{
	int err = 0;

	mutex_lock(&service_lock);
	if (service_open)
		err = -EBUSY;
	else
		service_open = true;
	mutex_unlock(&service_lock);
	return err ?: nonseekable_open(inode, file);
}

static int service_device_release(struct inode *inode, struct file *file)
{
	mutex_lock(&service_lock);
	service_open = false;
	if (in_flight)
		complete_request(QUOTE_NO_SERVICE, 0);
	mutex_unlock(&service_lock);
	return 0;
}

static ssize_t service_device_read(struct file *file, char __user *to, size_t count, loff_t *pos)
{
	ssize_t done;

	do {
		done = wait_event_interruptible(service_wait,
						READ_ONCE(in_flight) && !in_flight_taken);
		if (done)
			return done;
		mutex_lock(&service_lock);
		if (in_flight && !in_flight_taken) {
			done = in_flight->in_len;
			if (count < done)
				done = -EINVAL;
			else if (copy_to_user(to, in_flight->data, done))
				done = -EFAULT;
			else
				in_flight_taken = true;
		}
		mutex_unlock(&service_lock);
	} while (!done);
	return done;
}

static ssize_t service_device_write(struct file *file, const char __user *from, size_t count,
				    loff_t *pos)
{
	ssize_t done = count;

	mutex_lock(&service_lock);
	if (!in_flight)
		done = -ESTALE;
	else if (!count)
		complete_request(QUOTE_ERROR, 0);
	else if (count > in_flight_room)
		done = -EFBIG;
	else if (copy_from_user(in_flight->data, from, count))
		done = -EFAULT;
	else
		complete_request(QUOTE_DONE, count);
	mutex_unlock(&service_lock);
	return done;
}

static const struct file_operations service_operations = {
	.owner = THIS_MODULE,
	.open = service_device_open,
	.release = service_device_release,
	.read = service_device_read,
	.write = service_device_write,
};

static struct miscdevice service_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "tdx_shim_quote",
	.mode = 0600,
	.fops = &service_operations,
};

/* ---- in place of the kernel's TDCALLs ------------------------------------------------------- */

struct detour {
	struct kprobe probe;
	void *to;
	bool optional; /* not in every kernel */
};

static int take_detour(struct kprobe *probe, struct pt_regs *regs)
{
	regs->ip = (unsigned long)container_of(probe, struct detour, probe)->to;
	return 1; /* do not go on with the probed instruction */
}

/* Never called. Its presence makes the kernel let a probe change the instruction pointer. */
static void after_detour(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

#define DETOUR(symbol, function, missing_is_fine)                                                  \
	{                                                                                          \
		.probe = {.symbol_name = symbol,                                                   \
			  .pre_handler = take_detour,                                              \
			  .post_handler = after_detour},                                           \
		.to = function,                                                                    \
		.optional = missing_is_fine,                                                       \
	}

static struct detour detours[] = {
	DETOUR("tdx_mcall_get_report0", shim_get_report0, false),
	DETOUR("tdx_hcall_get_quote", shim_get_quote, false),
	DETOUR("tdx_mcall_extend_rtmr", shim_extend_rtmr, true), /* Linux 6.16 */
};

static void close_detours(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(detours); i++) {
		if (detours[i].probe.addr)
			unregister_kprobe(&detours[i].probe);
	}
}

static int open_detours(void)
{
	size_t i;
	int err;

	for (i = 0; i < ARRAY_SIZE(detours); i++) {
		err = register_kprobe(&detours[i].probe);
		if (!err)
			continue;
		detours[i].probe.addr = NULL;
		if (err == -ENOENT && detours[i].optional)
			continue;
		pr_err("no probe on %s: %d\n", detours[i].probe.symbol_name, err);
		close_detours();
		return err;
	}
	return 0;
}

/* ---- loading -------------------------------------------------------------------------------- */

/* The driver may be inside our functions, so this module stays while the driver is loaded. */
static int driver_comes_or_goes(struct notifier_block *block, unsigned long what, void *which)
{
	struct module *module = which;

	if (strcmp(module->name, "tdx_guest"))
		return NOTIFY_DONE;
	if (what == MODULE_STATE_COMING) {
		__module_get(THIS_MODULE);
	} else if (what == MODULE_STATE_GOING) {
		mutex_lock(&service_lock);
		in_flight = NULL; /* its buffer went with the driver */
		mutex_unlock(&service_lock);
		module_put(THIS_MODULE);
	}
	return NOTIFY_OK;
}

static struct notifier_block driver_notifier = {.notifier_call = driver_comes_or_goes};

/* The driver loads only where the CPU says that this is a TD; /proc/cpuinfo shows it too. */
static void claim_to_be_a_td(bool td)
{
	int cpu;

	for_each_possible_cpu(cpu)
		assign_bit(X86_FEATURE_TDX_GUEST, (unsigned long *)cpu_data(cpu).x86_capability,
			   td);
	assign_bit(X86_FEATURE_TDX_GUEST, (unsigned long *)boot_cpu_data.x86_capability, td);
}

static int __init tdx_shim_init(void)
{
	int err;

	sha384 = crypto_alloc_shash("sha384", 0, 0);
	if (IS_ERR(sha384))
		return PTR_ERR(sha384);
	err = misc_register(&tdx_shim_report.node);
	if (err)
		goto no_report;
	err = misc_register(&service_device);
	if (err)
		goto no_service;
	err = open_detours();
	if (err)
		goto no_detours;
	err = register_module_notifier(&driver_notifier);
	if (err)
		goto no_notifier;
	claim_to_be_a_td(true);
	return 0;

no_notifier:
	close_detours();
no_detours:
	misc_deregister(&service_device);
no_service:
	misc_deregister(&tdx_shim_report.node);
no_report:
	crypto_free_shash(sha384);
	return err;
}

static void __exit tdx_shim_exit(void)
{
	claim_to_be_a_td(false);
	unregister_module_notifier(&driver_notifier);
	close_detours();
	misc_deregister(&service_device);
	misc_deregister(&tdx_shim_report.node);
	crypto_free_shash(sha384);
}

module_init(tdx_shim_init);
module_exit(tdx_shim_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test rig: a made-up TDX module under the real tdx-guest driver");
