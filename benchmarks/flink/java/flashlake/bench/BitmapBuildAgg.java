package flashlake.bench;

import java.io.ByteArrayOutputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import org.apache.flink.table.annotation.DataTypeHint;
import org.apache.flink.table.annotation.FunctionHint;
import org.apache.flink.table.functions.AggregateFunction;
import org.roaringbitmap.RoaringBitmap;

/** BITMAP_BUILD_AGG(INT) gives BYTES in the format that Fluss's rbm32 merges. It takes no retraction. */
@FunctionHint(
    input = @DataTypeHint("INT"),
    accumulator = @DataTypeHint(value = "RAW", bridgedTo = RoaringBitmap.class, rawSerializer = BitmapSerializer.class),
    output = @DataTypeHint("BYTES"))
public class BitmapBuildAgg extends AggregateFunction<byte[], RoaringBitmap> {
    @Override
    public RoaringBitmap createAccumulator() {
        return new RoaringBitmap();
    }

    public void accumulate(RoaringBitmap members, Integer member) {
        if (member != null) {
            members.add(member);
        }
    }

    public void merge(RoaringBitmap members, Iterable<RoaringBitmap> others) {
        for (RoaringBitmap other : others) {
            members.or(other);
        }
    }

    @Override
    public byte[] getValue(RoaringBitmap members) {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream(members.serializedSizeInBytes());
        try {
            members.serialize(new DataOutputStream(bytes));
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return bytes.toByteArray();
    }
}
