"""GetUsage: protobuf to domain and back."""

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_inference.encode import usage_to
from janus_inference.usage_report import Dimension, UsageBucket, UsagePage, UsageQuery
from janus_kit.errors import InvalidArgument

_DIMENSIONS: dict[int, Dimension] = {
    pb.USAGE_DIMENSION_MODEL: Dimension.MODEL,
    pb.USAGE_DIMENSION_PROVIDER: Dimension.PROVIDER,
    pb.USAGE_DIMENSION_LABEL: Dimension.LABEL,
    pb.USAGE_DIMENSION_SUBJECT: Dimension.SUBJECT,
}
# One more than there are is one too many already.
_MOST_DIMENSIONS = len(_DIMENSIONS) + 1


def usage_query_from(request: pb.GetUsageRequest) -> UsageQuery:
    """The report that is asked for. Raises InvalidArgument for what is no time."""
    return UsageQuery(
        start=_time("start_time", request.start_time) if request.HasField("start_time") else None,
        end=_time("end_time", request.end_time) if request.HasField("end_time") else None,
        bucket=_width(request.bucket) if request.HasField("bucket") else None,
        group_by=tuple(_DIMENSIONS.get(each, Dimension.UNSPECIFIED) for each in request.group_by[:_MOST_DIMENSIONS]),
        label_key=request.label_key,
        page_size=request.page_size,
        page_token=request.page_token,
    )


def usage_page_to(page: UsagePage) -> pb.GetUsageResponse:
    return pb.GetUsageResponse(buckets=map(_bucket_to, page.buckets), next_page_token=page.next_token)


def _bucket_to(bucket: UsageBucket) -> pb.UsageBucket:
    return pb.UsageBucket(
        start_time=_timestamp(bucket.start),
        end_time=_timestamp(bucket.end),
        model=bucket.group.model,
        provider=bucket.group.provider,
        label_value=bucket.group.label_value,
        subject=bucket.group.subject,
        calls=bucket.calls,
        usage=usage_to(bucket.usage, bucket.cost),
        unpriced_calls=bucket.unpriced_calls,
    )


def _time(field: str, time: Timestamp) -> datetime:
    """To the microsecond, as records are kept."""
    try:
        return time.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(field, "must be a time of the years 1 to 9999") from None


def _width(width: Duration) -> timedelta:
    try:
        return width.ToTimedelta()
    except (ValueError, OverflowError):
        raise InvalidArgument("bucket", "must be 1 minute to 31 days") from None


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
