def accumulation_steps(total_batch_size, per_device_batch_size, world_size):
    from ..errors import UserError
    if total_batch_size % (per_device_batch_size * world_size): raise UserError("x")
    return total_batch_size // (per_device_batch_size * world_size)
