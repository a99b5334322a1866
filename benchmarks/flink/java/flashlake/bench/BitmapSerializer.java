package flashlake.bench;

import java.io.IOException;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.base.TypeSerializerSingleton;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;
import org.roaringbitmap.RoaringBitmap;

/** State of an aggregate over bitmaps; Flink's generic serializer does not know their arrays. */
public class BitmapSerializer extends TypeSerializerSingleton<RoaringBitmap> {
    @Override
    public boolean isImmutableType() {
        return false;
    }

    @Override
    public RoaringBitmap createInstance() {
        return new RoaringBitmap();
    }

    @Override
    public RoaringBitmap copy(RoaringBitmap from) {
        return from.clone();
    }

    @Override
    public RoaringBitmap copy(RoaringBitmap from, RoaringBitmap reuse) {
        return from.clone();
    }

    @Override
    public int getLength() {
        return -1;
    }

    @Override
    public void serialize(RoaringBitmap bitmap, DataOutputView target) throws IOException {
        bitmap.serialize(target);
    }

    @Override
    public RoaringBitmap deserialize(DataInputView source) throws IOException {
        RoaringBitmap bitmap = new RoaringBitmap();
        bitmap.deserialize(source);
        return bitmap;
    }

    @Override
    public RoaringBitmap deserialize(RoaringBitmap reuse, DataInputView source) throws IOException {
        return deserialize(source);
    }

    @Override
    public void copy(DataInputView source, DataOutputView target) throws IOException {
        serialize(deserialize(source), target);
    }

    @Override
    public TypeSerializerSnapshot<RoaringBitmap> snapshotConfiguration() {
        return new Snapshot();
    }

    /** The format has no versions of its own. */
    public static final class Snapshot extends SimpleTypeSerializerSnapshot<RoaringBitmap> {
        public Snapshot() {
            super(BitmapSerializer::new);
        }
    }
}
