"""Why a measured mIoU is not the claimed one."""
