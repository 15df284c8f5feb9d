// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * A simulated SEV-SNP guest behind the kernel's configfs-tsm.
 *
 * The kernel's sev-guest driver calls firmware in a way that cannot be intercepted, so this report
 * provider replaces it, with the same name, attributes and rules; the kernel's configfs-tsm is in
 * front of it.
 *
 *   /dev/snp_shim_report    the report, 1184 bytes; report data and VMPL are filled in per request,
 *                           so its signature is invalid.
 *   /dev/snp_shim_certs     the host's certificate table, up to 16 KiB; may be empty.
 *   /dev/snp_shim_manifest  the services of an SVSM.
 */
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/tsm.h>
#include <linux/unaligned.h>
#include <linux/version.h>
#include "shim.h"

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 16, 0)
#define tsm_report_ops tsm_ops
#define tsm_report_register tsm_register
#define tsm_report_unregister tsm_unregister
#endif

/* Offsets in a report (AMD SEV-SNP Firmware ABI, ATTESTATION_REPORT). */
#define REPORT_SIZE 1184
#define VMPL_AT 0x30
#define REPORT_DATA_AT 0x50
#define REPORT_DATA_SIZE 64

static int report_err;	     /* negative errno of each request; zero: no fault */
static uint privlevel_floor; /* VMPL that this guest runs at */
static bool svsm;	     /* the guest runs under an SVSM */
module_param(report_err, int, 0600);
module_param(privlevel_floor, uint, 0400);
module_param(svsm, bool, 0400);

static atomic_t report_calls; /* number of report requests */
module_param_named(report_calls, report_calls.counter, int, 0400);

static u8 report_data[REPORT_SIZE], certs_data[SZ_16K], manifest_data[SZ_4K];
SHIM_BYTES(snp_shim_report, report_data, REPORT_SIZE);
SHIM_BYTES(snp_shim_certs, certs_data, 0);
SHIM_BYTES(snp_shim_manifest, manifest_data, 0);
static struct shim_bytes *const nodes[] = {&snp_shim_report, &snp_shim_certs, &snp_shim_manifest};

static bool key_wiped;

/* Return a copy that the kernel frees; NULL for zero bytes. */
static int copy_bytes(struct shim_bytes *from, u8 **blob, size_t *len)
{
	int err = 0;

	mutex_lock(&from->lock);
	if (from->len) {
		*blob = kvmemdup(from->data, from->len, GFP_KERNEL);
		*len = from->len;
		err = *blob ? 0 : -ENOMEM;
	}
	mutex_unlock(&from->lock);
	return err;
}

/* Return what the kernel's driver would; called with the lock of configfs-tsm held. */
static int snp_report_new(struct tsm_report *report, void *unused)
{
	const typeof(report->desc) *asked = &report->desc;
	int err;

	atomic_inc(&report_calls);
	if (asked->inblob_len != REPORT_DATA_SIZE || asked->privlevel < privlevel_floor)
		return -EINVAL;
	if (key_wiped)
		return -ENOTTY;
	if (shim_strikes(report_err)) {
		/* After a failed exchange the driver never uses its key again. */
		key_wiped = report_err == -EIO || report_err == -ETIMEDOUT;
		return report_err;
	}
	err = copy_bytes(&snp_shim_report, &report->outblob, &report->outblob_len);
	if (!err)
		err = copy_bytes(&snp_shim_certs, &report->auxblob, &report->auxblob_len);
	if (!err && asked->service_provider)
		err = copy_bytes(&snp_shim_manifest, &report->manifestblob,
				 &report->manifestblob_len);
	if (err || report->outblob_len != REPORT_SIZE)
		return err ?: -EIO;
	memcpy(report->outblob + REPORT_DATA_AT, asked->inblob, REPORT_DATA_SIZE);
	put_unaligned_le32(asked->privlevel, report->outblob + VMPL_AT);
	return 0;
}

static bool snp_attribute_visible(int which)
{
	switch (which) {
	case TSM_REPORT_SERVICE_PROVIDER:
	case TSM_REPORT_SERVICE_GUID:
	case TSM_REPORT_SERVICE_MANIFEST_VER:
		return svsm;
	default:
		return true;
	}
}

static bool snp_blob_visible(int which)
{
	return which != TSM_REPORT_MANIFESTBLOB || svsm;
}

static struct tsm_report_ops snp_operations = {
	.name = "sev_guest",
	.report_new = snp_report_new,
	.report_attr_visible = snp_attribute_visible,
	.report_bin_attr_visible = snp_blob_visible,
};

static void deregister_nodes(size_t count)
{
	while (count--)
		misc_deregister(&nodes[count]->node);
}

static int __init snp_shim_init(void)
{
	size_t i;
	int err;

	for (i = 0; i < ARRAY_SIZE(nodes); i++) {
		err = misc_register(&nodes[i]->node);
		if (err)
			goto failed;
	}
	snp_operations.privlevel_floor = privlevel_floor;
	err = tsm_report_register(&snp_operations, NULL);
	if (!err)
		return 0;
failed:
	deregister_nodes(i);
	return err;
}

static void __exit snp_shim_exit(void)
{
	tsm_report_unregister(&snp_operations);
	deregister_nodes(ARRAY_SIZE(nodes));
}

module_init(snp_shim_init);
module_exit(snp_shim_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test rig: a made-up SEV-SNP guest behind the real configfs-tsm");
