/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Common parts of both simulated platforms: faults for a number of calls, and byte arrays that user
 * space reads and writes as devices.
 */
#ifndef ATTESTKIT_RIG_SHIM_H
#define ATTESTKIT_RIG_SHIM_H

#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>

/* Number of calls that fail while a fault is set; -1: all. */
static int fault_times = -1;
module_param(fault_times, int, 0600);

/* Return whether a fault, a nonzero module parameter, applies to this call. */
static bool shim_strikes(unsigned long fault)
{
	bool strikes;

	kernel_param_lock(THIS_MODULE);
	strikes = fault && fault_times;
	if (strikes && fault_times > 0)
		fault_times--;
	kernel_param_unlock(THIS_MODULE);
	return strikes;
}

/* Bytes of a device node: reads and writes use the offset, and O_TRUNC empties the array. */
struct shim_bytes {
	struct miscdevice node;
	struct mutex lock;
	size_t len, room;
	u8 *data;
};

static struct shim_bytes *shim_bytes_of(struct file *file)
{
	return container_of(file->private_data, struct shim_bytes, node);
}

static int shim_bytes_open(struct inode *inode, struct file *file)
{
	struct shim_bytes *bytes = shim_bytes_of(file);

	if (!(file->f_flags & O_TRUNC))
		return 0;
	mutex_lock(&bytes->lock);
	bytes->len = 0;
	mutex_unlock(&bytes->lock);
	return 0;
}

static ssize_t shim_bytes_read(struct file *file, char __user *to, size_t count, loff_t *pos)
{
	struct shim_bytes *bytes = shim_bytes_of(file);
	ssize_t done;

	mutex_lock(&bytes->lock);
	done = simple_read_from_buffer(to, count, pos, bytes->data, bytes->len);
	mutex_unlock(&bytes->lock);
	return done;
}

static ssize_t shim_bytes_write(struct file *file, const char __user *from, size_t count,
				loff_t *pos)
{
	struct shim_bytes *bytes = shim_bytes_of(file);
	ssize_t done;

	mutex_lock(&bytes->lock);
	done = simple_write_to_buffer(bytes->data, bytes->room, pos, from, count);
	if (done > 0)
		bytes->len = max_t(size_t, bytes->len, *pos);
	mutex_unlock(&bytes->lock);
	return done;
}

static const struct file_operations shim_bytes_operations = {
	.owner = THIS_MODULE,
	.open = shim_bytes_open,
	.read = shim_bytes_read,
	.write = shim_bytes_write,
	.llseek = default_llseek,
};

/* Define `bytes` and its device, /dev/<bytes>, over an array with `used` valid bytes. */
#define SHIM_BYTES(bytes, array, used)                                                             \
	static struct shim_bytes bytes = {                                                         \
		.node = {.minor = MISC_DYNAMIC_MINOR,                                              \
			 .name = #bytes,                                                           \
			 .mode = 0600,                                                             \
			 .fops = &shim_bytes_operations},                                          \
		.lock = __MUTEX_INITIALIZER(bytes.lock),                                           \
		.len = (used),                                                                     \
		.room = sizeof(array),                                                             \
		.data = (array),                                                                   \
	}

#endif
